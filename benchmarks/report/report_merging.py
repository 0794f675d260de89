"""Merged and forgotten tasks as tables: what share of its own accuracy each task keeps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.report.report_accuracy import table

Line = dict[str, Any]
SUPPORTS = {
    "taskedge": "`taskedge`, on each task's rows",
    "random": "random",
    "disjoint": "disjoint",
}
"""The rows of the tables, in order."""
METHODS = ("arithmetic", "selective", "ties", "dare", "breadcrumbs")


def merged(lines: Sequence[Line]) -> str:
    """A row a kind of support, a column a method: mean share of the accuracy with the own delta, over four tasks."""
    single = {(x["supports"], x["seed"], x["task"]): x for x in lines if x["part"] == "single"}
    rows = []
    for supports, name in SUPPORTS.items():
        runs = [x for x in lines if (x["part"], x.get("supports")) == ("merged", supports)]
        if not runs:
            continue
        seeds = sorted({x["seed"] for x in runs})
        own = [[one["test"] for key, one in single.items() if key[:2] == (supports, seed)] for seed in seeds]
        alone = [
            [one["head_alone"] / one["test"] for key, one in single.items() if key[:2] == (supports, seed)]
            for seed in seeds
        ]
        cells = [
            [
                mean(x["test"][task] / single[supports, x["seed"], task]["test"] for task in x["test"])
                for x in runs
                if x["method"] == method
            ]
            for method in METHODS
        ]
        shown = [_percent(cell) for cell in (list(map(mean, own)), list(map(mean, alone)), *cells)]
        rows.append([name, *shown, str(len(seeds))])
    methods = [f"`{method}`" for method in METHODS]
    head = ["supports", "accuracy with the own delta", "heads on the base", *methods, "seeds"]
    return table(head, rows)


def forgotten(lines: Sequence[Line]) -> str:
    """A row a kind of support and a forgotten task: its accuracy before and after, and what it cost the others."""
    rows = []
    for supports, name in SUPPORTS.items():
        runs = [x for x in lines if (x["part"], x.get("supports")) == ("forgotten", supports)]
        for task in dict.fromkeys(x["task"] for x in runs):
            own = [x for x in runs if x["task"] == task]
            lost = [max(x["before"][key] - x["test"][key] for key in x["test"] if key != task) for x in own]
            about = f"`{own[0]['method']}`, factor {own[0]['factor']:g}"
            cells = [[x["before"][task] for x in own], [x["test"][task] for x in own], lost]
            chance, *shown = (_percent(cell) for cell in ([own[0]["chance"]], *cells))
            rows.append([name, task, about, chance, *shown, str(len(own))])
    return table(
        ["supports", "forgotten task", "subtracted by", "largest class", "before", "after", "largest loss of another",
         "seeds"], rows,
    )  # fmt: skip


def many(lines: Sequence[Line]) -> str:
    """A row a way to train several tasks: test accuracy by task and its mean, cost of one pass, size, CPU time."""
    ways = {
        ("a delta for each task", None): "a delta for each task",
        ("at once", None): "`tune-many`",
        ("at once", "1.5x"): "`tune-many --flops-target 1.5x`",
    }
    tasks = list(lines[0]["test"])
    rows = []
    for key, name in ways.items():
        runs = [x for x in lines if (x["how"], x.get("target")) == key]
        if runs:
            shown = [_percent([x["test"][task] for x in runs]) for task in tasks]
            of_all = _percent([mean(x["test"].values()) for x in runs])
            cost, size, seconds = (mean(x[of] for x in runs) for of in ("cost", "bytes", "cpu_seconds"))
            rows.append([name, *shown, of_all, f"{cost:.2f}", f"{size / 1000:.0f}", f"{seconds:.0f}", str(len(runs))])
    return table(["trained", *tasks, "mean", "passes", "kB", "CPU seconds", "seeds"], rows)


def _percent(found: Sequence[float]) -> str:
    if not found:
        return ""
    spread = f" ± {100 * stdev(found):.1f}" if len(found) > 1 else ""
    return f"{100 * mean(found):.1f}{spread}"
