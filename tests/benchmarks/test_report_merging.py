"""Tables of merged and forgotten tasks: shares of the own accuracy, means and deviations over seeds."""

from __future__ import annotations

from benchmarks.report.report_merging import forgotten, many, merged


def single(seed, task, test, head):
    return {"part": "single", "supports": "random", "seed": seed, "task": task, "test": test, "head_alone": head}


def merge(seed, method, **test):
    return {"part": "merged", "supports": "random", "seed": seed, "method": method, "test": test}


def test_shares_are_of_the_own_accuracy_of_the_same_seed():
    lines = [single(0, "a", 0.8, 0.4), single(0, "b", 0.5, 0.5), single(1, "a", 1.0, 0.5), single(1, "b", 1.0, 0.5)]
    lines += [merge(0, "ties", a=0.4, b=0.5), merge(1, "ties", a=0.5, b=1.0), merge(0, "dare", a=0.8, b=0.5)]
    row = merged(lines).splitlines()[2]
    # 0.5 and 1 in both seeds: 75 %; heads alone 75 % and 50 %; own accuracy 0.65 and 1
    assert row == "| random | 82.5 ± 24.7 | 62.5 ± 17.7 |  |  | 75.0 ± 0.0 | 100.0 |  | 2 |"


def test_forgetting_states_the_task_before_and_after_and_the_largest_loss():
    line = {
        "part": "forgotten", "supports": "taskedge", "seed": 0, "task": "a", "method": "selective", "factor": 2.0,
        "chance": 0.5, "before": {"a": 0.9, "b": 0.8, "c": 0.7}, "test": {"a": 0.55, "b": 0.79, "c": 0.66},
    }  # fmt: skip
    row = forgotten([line]).splitlines()[2]
    assert row == "| `taskedge`, on each task's rows | a | `selective`, factor 2 | 50.0 | 90.0 | 55.0 | 4.0 | 1 |"


def test_ways_to_train_several_tasks_have_a_row_each():
    common = {"bytes": 300_400, "cpu_seconds": 70.4}
    lines = [
        {"how": "at once", "target": "1.5x", "seed": 0, "test": {"a": 0.5, "b": 1.0}, "cost": 1.5} | common,
        {"how": "at once", "target": None, "seed": 0, "test": {"a": 0.6, "b": 1.0}, "cost": 2.0} | common,
        {"how": "at once", "target": None, "seed": 1, "test": {"a": 0.8, "b": 1.0}, "cost": 2.0} | common,
    ]
    _, _, own, bounded = many(lines).splitlines()
    assert own == "| `tune-many` | 70.0 ± 14.1 | 100.0 ± 0.0 | 85.0 ± 7.1 | 2.00 | 300 | 70 | 2 |"
    assert bounded == "| `tune-many --flops-target 1.5x` | 50.0 | 100.0 | 75.0 | 1.50 | 300 | 70 | 1 |"
