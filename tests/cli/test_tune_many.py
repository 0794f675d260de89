"""``taskedge tune-many``, and the verbs that read its file."""

from __future__ import annotations

import json

import pytest
import tiny_task


@pytest.mark.slow
def test_two_tasks_are_tuned_measured_and_described(taskedge, task, here):
    tiny_task.table(here / "three.csv", tiny_task.rows(48, seed=5, names=("x", "y", "z")))
    common = ("--model", task / "base", "--shared-budget", "3%", "--task-budget", "2%", "--epochs", 1, "--threads", 1)
    done = taskedge(
        "tune-many", *common, "--task", f"mood={task / 'train.csv'}", "--task", "kind=three.csv", "--eval",
        f"mood={task / 'eval.csv'}", "--out", "both.safetensors", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["tasks"] == ["mood", "kind"]
    assert told["quality"]["mood"]["rows"] == 40
    assert "entries are used by some task" in done.err
    measured = taskedge("eval", "both.safetensors", "--task", "mood", "--data", task / "eval.csv", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["accuracy"] == told["quality"]["mood"]["accuracy"]
    described = taskedge("info", "both.safetensors")
    assert "own entries in" in described.out
    merged = taskedge("merge", "both.safetensors", "--head", "kind", "--out", "merged")
    assert merged.code == 0, merged.err


def test_a_dry_run_states_the_plan_and_writes_nothing(taskedge, task, here):
    tasks = ("--task", f"a={task / 'train.csv'}", "--task", f"b={task / 'eval.csv'}")
    budgets = ("--shared-budget", "3%", "--task-budget", "2%", "--flops-target", "1.5x", "--batch-size", 8)
    planned = ("tune-many", "--model", task / "base", *tasks, *budgets, "--epochs", 1, "--dry-run")
    done = taskedge(*planned)
    assert done.code == 0, done.err
    assert "186 shared entries, 12 steps; one pass for all tasks may cost 1.5 passes of one" in done.out
    plan = json.loads(taskedge(*planned, "--json").out)
    assert plan["tasks"]["b"] == {
        "task": "text-classification", "labels": ["neg", "pos"], "rows": 40, "own_entries": 124, "head_parameters": 34,
    }  # fmt: skip
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "a=a.csv", "--task", "a=b.csv"), "two are named 'a'"),
        (("--task", "a=a.csv", "--eval", "b=b.csv"), "there is no --task of that name"),
        (("--task", "a=a.csv"), "share nothing: give two or more"),
        (("--flops-target", "0.5x"), "less than one pass"),
    ],
)
def test_options_that_make_no_sense_are_refused(taskedge, here, arguments, message):
    done = taskedge("tune-many", "--model", "base", *arguments)
    assert done.code == 2
    assert message in done.err
