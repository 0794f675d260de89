"""A run whose support gates find: killed in any phase it ends with the same bytes, and it states what it needs."""

from __future__ import annotations

import signal

import pytest
import torch
from killed_runs import killed_at
from tiny_task import forked, tune_config, tuning

from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.selection.support import load_support
from taskedge.training import checkpoint, find_support
from taskedge.training.dry_run import dry_run
from taskedge.training.run import prepare_run
from taskedge.training.select_run import select_to_file
from taskedge.training.selection_settings import GATE_PENALTY
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

GATES = ("--support", "diff-pruning", "--support-lr", "1e-2", "--gate-penalty", "1", "--support-epochs", "1")
OFTEN = ("--checkpoint-every", "5")
SETTINGS = {"support": "diff-pruning", "support_lr": 1e-2, "gate_penalty": 1.0, "support_epochs": 0.5, "budget": "2%"}
MOMENTS = {
    "before the first checkpoint of the gates": killed_at(checkpoint, "write"),
    "between checkpoints of the gates": killed_at(checkpoint, "write", call=3),
    "before the support is stored": killed_at(find_support, "save_support"),
    "after the support is stored": killed_at(find_support, "save_support", after=True),
    "in the third phase": killed_at(checkpoint, "write", call=5, after=True),
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """Return the bytes of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "task.safetensors"
    ended = forked([*tuning(task, "--out", out, *OFTEN, *GATES)])
    assert ended.code == 0, ended.err
    assert names(out.parent) == [out.name]
    return out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_same_bytes(task, whole, tmp_path, moment):
    out = tmp_path / "task.safetensors"
    arguments = [*tuning(task, "--out", out, *OFTEN, *GATES)]
    assert forked(arguments, MOMENTS[moment]).code == -signal.SIGKILL
    ended = forked([*arguments, "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole
    assert names(tmp_path) == [out.name]


@pytest.mark.slow
def test_a_killed_selection_ends_with_the_same_bytes_which_give_those_of_the_run(task, whole, tmp_path):
    data = ["--model", task / "base", "--train", task / "train.csv", "--text", "text", "--label", "label"]
    data += ["--batch-size", 8, "--threads", 1]
    select = [*map(str, ["select", *data, "--budget", "2%", *OFTEN, *GATES, "--out"])]
    assert forked([*select, str(tmp_path / "one")]).code == 0
    assert forked([*select, str(tmp_path / "two")], MOMENTS["between checkpoints of the gates"]).code == -signal.SIGKILL
    changed = forked([*select, str(tmp_path / "two"), "--resume", "--seed", "3"])
    assert "the interrupted selection had other settings: --seed 0 (now --seed 3)" in changed.err
    kept = names(tmp_path / "two.run")
    by_rule = [*map(str, ["select", *data, "--budget", "2%", "--out", tmp_path / "two"])]
    for refused, message in (  # nothing discards what is interrupted
        (forked([*select, str(tmp_path / "two")]), "two.run holds an interrupted selection or run: continue it with"),
        (forked(by_rule), "two.run holds an interrupted selection or run: continue it with"),
        (forked([*by_rule, "--resume"]), "the interrupted selection had other settings: --support diff-pruning (now"),
    ):
        assert refused.code == 2
        assert message in refused.err
    assert names(tmp_path / "two.run") == kept
    assert forked([*select, str(tmp_path / "two"), "--resume"]).code == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    tune_ = [
        "tune",
        *data,
        "--lr",
        "1e-2",
        "--epochs",
        "1",
        "--support-file",
        tmp_path / "one",
        "--out",
        tmp_path / "d",
    ]
    assert forked([*map(str, tune_)]).code == 0
    assert (tmp_path / "d").read_bytes() == whole
    assert names(tmp_path) == ["d", "one", "two"]


def test_the_support_brings_start_and_head_and_is_bound_to_the_labels(task, tmp_path):
    select_to_file(tune_config(task, tmp_path / "unused", **SETTINGS), tmp_path / "s", progress=False, log=str)
    support = load_support(tmp_path / "s")
    assert (support.rule, support.settings["draw"]) == ("diff-pruning", "final")
    assert set(support.start) == set(support.linears)
    assert set(support.start_full) == {"classifier.weight", "classifier.bias"}
    other = task / "train.csv"
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(other.read_text().replace(",pos", ",yes").replace(",neg", ",no"))
    config = TuneConfig(
        model=str(task / "base"), train=renamed, text=["text"], label="label", support_file=tmp_path / "s",
        out=tmp_path / "d",
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"holds a head for the labels \['neg', 'pos'\], and the data have \['no', 'yes"
    ):
        tune(config, progress=False, log=str)


CANDIDATES = {"support": "diff-pruning", "candidates": 4, "rule": "pursuit", "support_epochs": 0.5, "gate_penalty": 1.0}


def among_candidates(task, out):
    """Settings of a run without a budget."""
    data = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    return TuneConfig(**data, batch_size=8, epochs=1, threads=1, out=out, **CANDIDATES)


def test_gates_on_candidates_leave_the_best_of_each_neuron(task, tmp_path):
    said = []
    plan = dry_run(among_candidates(task, tmp_path / "d"), log=said.append)
    assert "gates on 4 candidates of each neuron by rule 'pursuit', of which 1 stay" in str(said)
    assert plan["entries"] == 2 * (4 * 16 + 32 + 16)  # neurons of the 12 linears
    select_to_file(among_candidates(task, tmp_path / "u"), tmp_path / "s", progress=False, log=str)
    support = load_support(tmp_path / "s")
    assert (support.rule, support.budget, support.settings["candidates"]) == (
        "diff-pruning", "1 per neuron", "4 per neuron",
    )  # fmt: skip
    assert all(len(linear.rows.unique()) == len(linear) for linear in support.linears.values())
    assert 0 < support.num_entries <= 224
    done = tune(among_candidates(task, tmp_path / "d"), progress=False, log=str)
    assert done.entries == support.num_entries
    rows = {name: linear.rows.tolist() for name, linear in load(tmp_path / "d").linears.items()}
    assert rows == {name: linear.rows.tolist() for name, linear in support.linears.items()}


def test_what_gates_need_is_stated_before_they_train(task, tmp_path):
    said = []
    plan = dry_run(tune_config(task, tmp_path / "d", **SETTINGS), log=said.append)
    assert plan["entries"] == 124
    assert "gates on 4,096 weights of 12 linears, of which 124 are to stay: eleven copies of these, 0.2 MB" in str(said)
    assert "as many random entries" in str(said)


def test_an_error_before_anything_is_worth_resuming_leaves_no_folder(task, tmp_path):
    with pytest.raises(InputError, match="cannot be chosen from 4,096 gated weights"):
        tune(tune_config(task, tmp_path / "d", **(SETTINGS | {"budget": "90%"})), progress=False, log=str)
    assert not list(tmp_path.iterdir())


def test_all_gates_closed_is_an_error_with_the_flags_to_change(task, tmp_path, monkeypatch):
    monkeypatch.setattr("taskedge.training.find_support.GateConfig", _closed)
    with pytest.raises(InputError, match=r"all gates closed in 0.5 epochs.*smaller --gate-penalty"):
        tune(tune_config(task, tmp_path / "d", **SETTINGS), progress=False, log=str)
    assert not list(tmp_path.iterdir())


def _closed(**settings):
    from taskedge.training.gates import GateConfig

    return GateConfig(**settings, start=-30.0)


def test_settings_become_those_of_the_gates(task, tmp_path):
    given = {"gates": "unstructured", "clip": 0.5, "group_penalty": "product"}
    run = prepare_run(tune_config(task, tmp_path / "d", support="diff-pruning", **given), str)
    config = find_support.gate_config(run)
    assert (config.structured, config.penalty, config.clip, config.group_penalty) == (
        False,
        GATE_PENALTY,
        0.5,
        "product",
    )


def test_a_gate_of_a_matrix_feels_the_pressure_of_one_weight_by_default():
    """The pressure of all its weights closes a matrix before any of them has shown its worth."""
    from taskedge.training.gates import GateConfig, Gates

    weights = {name: torch.nn.Parameter(torch.randn(6, 5)) for name in ("a", "b")}
    gates = Gates(weights, GateConfig(), seed=0)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    gates.backward(0)
    one_weight = {float(gradient) for alpha in gates.alpha for gradient in alpha.grad.flatten()}
    assert len(one_weight) == 1
    assert {float(alpha.grad) for alpha in gates.group_alpha} == one_weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "random"}, "--rule has no effect with --support diff-pruning, which chooses by its gates"),
        (
            {"candidates": 8, "budget": "1%"},
            "--budget has no effect with --candidates, of which the best of each neuron",
        ),
        ({"candidates": 8, "per_neuron": 8}, "--candidates 8 leave gates nothing to choose: give more than"),
        ({"support": "rule", "candidates": 8}, "--candidates has no effect without gates: leave it out, or give"),
        ({"form": "sparse_lora"}, "gives entries a start, and form 'sparse_lora' has none"),
        ({"memory": "1GB"}, "needs memory that is not predicted: leave out --memory"),
        ({"weight_storage": "int8"}, "--weight-storage int8 does not support --support diff-pruning"),
        ({"support": "rule", "gates": "structured"}, "--gates has no effect without gates: leave it out, or give"),
    ],
    ids=str,
)
def test_settings_that_gates_exclude(task, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        tune_config(task, tmp_path / "d", **({"support": "diff-pruning"} | settings))


def test_the_delta_names_how_its_entries_were_found(task, tmp_path):
    tune(tune_config(task, tmp_path / "d", **SETTINGS, lr=1e-3), progress=False, log=str)
    provenance = load(tmp_path / "d").provenance
    assert (provenance.rule, provenance.allocation, provenance.budget) == ("diff-pruning", "global", "2%")
