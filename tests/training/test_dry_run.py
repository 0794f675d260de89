"""The plan of a run is what the run does; making it writes nothing."""

from __future__ import annotations

import json

import pytest
from killed_runs import killed_at
from measured_runs import measure_once
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.delta.file import load
from taskedge.errors import DoesNotFit, InputError
from taskedge.training import checkpoint
from taskedge.training.config import load_config
from taskedge.training.dry_run import dry_run, estimate
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Time one pass only: no test depends on timings."""
    monkeypatch.setattr("taskedge.training.memory.profiler.BRIEF_PASS_SECONDS", 0.0)
    monkeypatch.setattr("taskedge.training.memory.measure_step.LONG_PASS_SECONDS", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"epochs": 1.3, "batch_size": 7, "accumulate": 2}, {"per_neuron": 2, "rule": "magnitude"}, {"model": "gpt2"}],
)
def test_the_plan_is_what_is_trained(task, tmp_path, more):
    more = {**more, "model": str(task / more["model"])} if "model" in more else more
    config = tune_config(task, tmp_path / "o", **more)
    lines = []
    planned = dry_run(config, log=lines.append)
    assert any(line.startswith("entries can be in ") for line in lines)
    assert snapshot(tmp_path) == {}
    done = tune(config, progress=False, log=str)
    assert (planned["entries"], planned["head_parameters"], planned["steps"]) == (done.entries, done.head, done.steps)
    assert planned["share"] == done.share == planned["entries"] / planned["model_parameters"]
    assert sum(linear["entries"] for linear in planned["linears"]) == done.entries
    json.dumps(planned)


def test_the_plan_of_a_warmed_head_has_the_entries_of_the_run(task, tmp_path):
    """Gradients pass through the head, so a head of random numbers gives other entries."""
    settings = {"rule": "gradient", "allocation": "global"}
    warmed = dry_run(tune_config(task, tmp_path / "o", head_warmup=True, **settings), log=str)
    tune(tune_config(task, tmp_path / "o", head_warmup=True, **settings), progress=False, log=str)
    planned = {linear["name"]: linear["entries"] for linear in warmed["linears"] if linear["entries"]}
    assert planned == {name: len(linear.rows) for name, linear in load(tmp_path / "o").linears.items()}
    plain = dry_run(tune_config(task, tmp_path / "p", **settings), log=str)
    assert plain["linears"] != warmed["linears"]


def test_a_plan_ignores_an_interrupted_run(task, tmp_path):
    arguments = tuning(task, "--out", tmp_path / "o")
    forked(arguments, killed_at(checkpoint, "write"))
    before = snapshot(tmp_path)
    assert dry_run(tune_config(task, tmp_path / "o", budget="4%"), log=str)["entries"] == round(0.04 * 6194)
    assert snapshot(tmp_path) == before


def test_a_plan_measures_nothing(task, tmp_path, monkeypatch):
    """It answers in the time of a load and a selection: no step is taken, and no configuration is tried."""
    for place in ("taskedge.training.dry_run.profile_all_options", "torch.Tensor.backward"):
        monkeypatch.setattr(place, None)
    lines = []
    planned = dry_run(tune_config(task, tmp_path / "o", memory="1MB"), log=lines.append)
    assert planned["steps"] == 12
    assert not {"seconds", "memory"} & planned.keys()
    assert lines[-2].startswith("--memory 1MB: the plan is that of the other settings; `taskedge estimate`")


@pytest.mark.slow
def test_an_estimate_lists_every_configuration(task, tmp_path, monkeypatch):
    measure_once(monkeypatch, {})
    config = tune_config(task, tmp_path / "o")
    decision = estimate(config, log=str)
    assert decision["chosen"] is None
    assert decision["costs"][0]["changes"] == {}
    assert {"depth", "dtype", "recompute", "optimizer"} <= {
        key for cost in decision["costs"] for key in cost["changes"]
    }
    with pytest.raises(DoesNotFit, match="--memory 1MB: nothing fits"):
        estimate(config.model_copy(update={"memory": "1MB"}), log=str)
    assert snapshot(tmp_path) == {}


def test_the_plan_of_gates_on_layers_counts_every_layer(task, tmp_path):
    """All gates start open: 4,096 weights and 12 scores train, and AdamW keeps two numbers for each."""
    flags = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    config = load_config(TuneConfig, {**flags, "form": "taps", "threads": 1, "out": tmp_path / "o"})
    plan = dry_run(config, log=str)
    assert plan["trained_parameters"] == 4096 + 12
    assert plan["optimizer_bytes"] == 8 * (4096 + 12 + plan["head_parameters"])
    assert sum(out * inputs for out, inputs in (layer["shape"] for layer in plan["whole_layers"])) == 4096
    assert plan["share"] == 4096 / plan["model_parameters"]
    assert (plan["entries"], plan["linears"], plan["low_rank"]) == (0, [], [])
    assert snapshot(tmp_path) == {}


def test_the_memory_of_a_soft_prompt_is_not_predicted(task):
    config = TuneConfig(model=str(task / "base"), train=task / "train.csv", form="prompt")
    with pytest.raises(InputError, match="the memory of --form prompt is not predicted"):
        estimate(config, log=str)
