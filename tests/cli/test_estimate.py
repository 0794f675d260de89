"""``taskedge estimate`` and ``taskedge tune --memory``: predictions, decisions, refusals and records."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from measured_runs import measure_once
from tiny_task import forked, snapshot, tuning

import taskedge as te
from taskedge.cli.estimate import command
from taskedge.training import tune
from taskedge.training.tune_config import TuneConfig

PLENTY = "100GB"


def flags(changes):
    """Return the flags of a run with these settings."""
    return [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", value)]


def estimating(task, *more):
    return ["estimate", *tuning(task, *more)[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        *([], ["--micro-batch", 4], ["--recompute", "blocks"], ["--form", "sparse_lora", "--rank", 2]),
        ["--form", "sparse_plus_low_rank", "--rank", 2],
    ],
    ids=str,
)
def test_a_run_within_a_budget_has_the_bits_of_its_configuration_by_hand(taskedge, task, here, given):
    ended = taskedge(*tuning(task, *given, "--memory", PLENTY, "--eval", task / "eval.csv", "--json"))
    assert ended.code == 0, ended.err
    done = json.loads(ended.out)
    changes = done["predicted"]["changes"]
    changes = {name: value for name, value in changes.items() if f"--{name.replace('_', '-')}" not in given}
    by_hand = taskedge(
        *tuning(task, *given, *flags(changes), "--out", "by-hand", "--eval", task / "eval.csv", "--json")
    )
    assert by_hand.code == 0, by_hand.err
    assert json.loads(by_hand.out)["quality"] == done["quality"]
    one, other = te.load(here / "task.safetensors"), te.load(here / "by-hand")
    assert one.linears.keys() == other.linears.keys()
    for name, linear in one.linears.items():
        assert torch.equal(linear.columns, other.linears[name].columns)
        assert torch.equal(linear.values, other.linears[name].values)
    for name, tensor in one.full_parameters.items():
        assert torch.equal(tensor, other.full_parameters[name])


@pytest.mark.slow
def test_predicted_and_observed_figures_are_printed_and_recorded(taskedge, task, here):
    ended = taskedge(*tuning(task, "--memory", PLENTY))
    assert ended.code == 0
    assert "predicted peak memory " in ended.err
    for kind in ("base ", "entries and optimizer ", "head ", "kept for the backward pass ", "temporary "):
        assert kind in ended.err
    assert "s a step, 12 steps" in ended.err
    assert ended.err.index("predicted peak") < ended.err.index("training 124 entries")
    said = next(line for line in ended.out.splitlines() if line.startswith("predicted: "))
    assert "; observed: " in said
    done = json.loads(taskedge(*tuning(task, "--memory", PLENTY, "--json", "--force")).out)
    memory = done["predicted"]["memory"]
    kinds = ("process", "base", "runtime", "entries", "head", "saved", "temporary")
    assert memory["peak"] == sum(memory[kind] for kind in kinds)
    assert memory["above_idle"] == memory["peak"] - memory["process"] - memory["base"]
    assert done["run_peak_memory"] <= done["peak_memory"]
    assert done["seconds_per_step"] > 0
    assert snapshot(here).keys() == {"task.safetensors"}


@pytest.mark.slow
def test_a_budget_that_nothing_fits_is_refused_before_anything_is_written(taskedge, task, here):
    assert_refused(taskedge(*tuning(task, "--memory", "1MB")))
    assert snapshot(here) == {}


def assert_refused(ended):
    assert ended.code == 3
    assert "taskedge: --memory 1MB: nothing fits: " in ended.err
    assert "give --memory " in ended.err
    assert ended.out == ""


@pytest.mark.slow
def test_no_process_is_larger_than_its_budget(task, here):
    """A refusal names a budget that is enough; each budget has a fresh process."""
    code, budgets = 3, ["300MB"]
    while code == 3 and len(budgets) < 4:
        ended = forked(tuning(task, "--memory", budgets[-1], "--json"))
        code = ended.code
        if code == 3:
            budgets.append(ended.err.split("give --memory ")[1].split("MB")[0] + "MB")
    assert code == 0, ended.err
    done = json.loads(ended.out)
    assert done["peak_memory"] <= int(budgets[-1].removesuffix("MB")) * 10**6
    assert done["predicted"]["needed"] <= int(budgets[-1].removesuffix("MB")) * 10**6


@pytest.mark.slow
def test_costs_as_a_table_as_json_and_refused(taskedge, task, here, monkeypatch):
    measure_once(monkeypatch, {})
    shown = taskedge(*estimating(task, "--memory", PLENTY))
    assert shown.code == 0, shown.err
    first, *rows = shown.out.split("\n\n")[0].splitlines()
    assert first.split() == ["configuration", "peak", "above", "idle", "give", "--memory", "step", "run"]
    assert sum(row.endswith("chosen") for row in rows) == 1
    assert next(row.split("  ")[0] for row in rows if row.endswith("not allowed")) == "depth 1"
    found = json.loads(taskedge(*estimating(task, "--json")).out)
    assert found["chosen"] is None
    assert [cost["config"] for cost in found["costs"]] == [row.split("  ")[0] for row in rows]
    assert_refused(taskedge(*estimating(task, "--memory", "1MB")))
    assert snapshot(here) == {}


@pytest.mark.slow
def test_a_resumed_run_keeps_its_configuration(taskedge, task, here, monkeypatch):
    words = tuning(task, "--memory", PLENTY, "--checkpoint-every", 2)

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune, "train", interrupted)
        assert taskedge(*words).code == 130
    chosen = json.loads((here / "task.safetensors.run" / "memory.json").read_text())
    whole = taskedge(*tuning(task, *flags(chosen["changes"]), "--out", "whole"))
    assert whole.code == 0, whole.err
    refused = taskedge(*tuning(task, "--memory", "1MB", "--resume"))
    assert refused.code == 3
    assert "the interrupted run needs" in refused.err
    with monkeypatch.context() as patch:
        patch.setattr(tune, "choose_within_budget", lambda *_: pytest.fail("measured again"))
        ended = taskedge(*words, "--resume", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["predicted"] == chosen
    one, other = te.load(here / "task.safetensors"), te.load(here / "whole")
    assert all(torch.equal(linear.values, other.linears[name].values) for name, linear in one.linears.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--memory", "much"], "--memory: 'much' is not a size of memory: write 600MB"),
        (["--allow", "dept"], "--allow: unknown option to allow 'dept'; did you mean 'depth'?"),
        (["--memory", "1GB", "--regrow", "2"], "leave out --memory"),
    ],
)
def test_settings_that_cannot_be_used(taskedge, task, here, given, told):
    ended = taskedge(*tuning(task, *given))
    assert ended.code == 2
    assert told in ended.err


def test_a_form_whose_memory_is_not_predicted_is_not_offered():
    options = {option.name: option for option in command.params}
    assert set(options["form"].type.choices) == set(get_args(TuneConfig.model_fields["form"].annotation)) - {"prompt"}
    assert not any(name.startswith("prompt_") for name in options)
