"""Training continues from a delta: the same entries and values, and a lineage in the file."""

from __future__ import annotations

import signal

import pytest
import tiny_task
import torch
from killed_runs import OFTEN, killed_at
from tiny_task import forked, tune_config, tuning

from taskedge.backbone.candidates import candidates
from taskedge.backbone.loading import load_base
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.training import checkpoint
from taskedge.training.continue_delta import support_of_delta
from taskedge.training.tune import tune


@pytest.fixture(scope="module")
def old(task, tmp_path_factory):
    out = tmp_path_factory.mktemp("old") / "old.safetensors"
    tune(tune_config(task, out), progress=False, log=str)
    return out


def going_on(task, old, out, **changes):
    given = {"model": str(task / "base"), "train": task / "train.csv", "batch_size": 8, "epochs": 1, "threads": 1}
    from taskedge.training.config import load_config
    from taskedge.training.tune_config import TuneConfig

    return load_config(TuneConfig, {**given, "from_delta": old, "out": out, **changes})


def test_it_begins_with_the_values_of_the_delta(task, old, tmp_path):
    """With a rate next to nothing, the file has the values of the old one."""
    tune(going_on(task, old, tmp_path / "o", lr=1e-12, head_lr=1e-12), progress=False, log=str)
    before, after = load(old), load(tmp_path / "o")
    assert before.linears.keys() == after.linears.keys()
    for name, linear in before.linears.items():
        assert torch.equal(linear.rows, after.linears[name].rows)
        assert torch.equal(linear.columns, after.linears[name].columns)
        assert linear.base_digest == after.linears[name].base_digest
        torch.testing.assert_close(linear.values, after.linears[name].values, atol=1e-6, rtol=1e-6)
    for name, value in before.full_parameters.items():
        torch.testing.assert_close(value, after.full_parameters[name], atol=1e-6, rtol=1e-6)
    lineage = after.provenance.training["from_delta"]
    assert (lineage["file"], lineage["steps"], lineage["rows"]) == ("old.safetensors", 12, 96)


def test_its_steps_count_the_neurons_that_have_entries(task, old):
    delta = load(old)
    base = load_base("text-classification", task / "base", delta.provenance.labels)
    batch = dict(base.tokenizer(["one text", "another"], padding=True, return_tensors="pt"))
    support = support_of_delta(
        old, base.model, "text-classification", delta.provenance.labels, list(delta.full_parameters), [batch], str
    )
    neurons = sum(layer.shape[0] for layer in candidates(base.model).values())
    used = sum(len(set(linear.rows.tolist())) for linear in delta.linears.values())
    assert support.neuron_share == used / neurons < 1


def test_the_lineage_goes_back_to_the_first(task, old, tmp_path):
    lines = []
    tune(going_on(task, old, tmp_path / "second"), progress=False, log=lines.append)
    tune(going_on(task, tmp_path / "second", tmp_path / "third"), progress=False, log=str)
    lineage = load(tmp_path / "third").provenance.training["from_delta"]
    assert [lineage["file"], lineage["from_delta"]["file"]] == ["second", "old.safetensors"]
    assert any(line.endswith("entries, after 12 steps on 96 rows") for line in lines)


@pytest.mark.slow
def test_it_resumes_to_the_same_bytes(task, old, tmp_path):
    arguments = tuning(task, "--from-delta", old, *OFTEN)
    cut = arguments.index("--budget")
    arguments = arguments[:cut] + arguments[cut + 2 :]
    assert forked([*arguments, "--out", str(tmp_path / "whole")]).code == 0
    arguments += ["--out", str(tmp_path / "o")]
    assert forked(arguments, killed_at(checkpoint, "write", call=2, after=True)).code == -signal.SIGKILL
    assert forked([*arguments, "--resume"]).code == 0
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_cannot_go_on(task, old, tmp_path):
    other = tiny_task.table(tmp_path / "t.csv", tiny_task.rows(24, names=("bad", "good", "long")))
    with pytest.raises(InputError, match=r"the delta has the classes .*: its head cannot continue"):
        tune(going_on(task, old, tmp_path / "o", train=other), progress=False, log=str)
    with pytest.raises(InputError, match=r"the delta was trained on another base: .*hold other values"):
        tune(going_on(task, old, tmp_path / "o", model=str(task / "other")), progress=False, log=str)
    with pytest.raises(InputError, match="--budget has no effect with --from-delta"):
        going_on(task, old, tmp_path / "o", budget="1%")
    with pytest.raises(InputError, match="--from-delta brings entries, values and a head: leave out --head-warmup"):
        going_on(task, old, tmp_path / "o", head_warmup=True)
