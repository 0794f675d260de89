"""The comparison at separate learning rates as a table: each method at its best, short and to convergence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.comparison import Chosen, Difference, Run, difference
from benchmarks.accuracy.protocol import BASES, LADDER, MINILM, OURS_NAMES, SEEDS, TASK_NAMES, TRIALS, base_of
from benchmarks.report.report_accuracy import table

REFERENCE = "taskedge"
OWN = "#0072b2"
RIVAL = "#d55e00"
Costs = Mapping[str, Mapping[str, Any]]
"""A line of ``compare_costs.jsonl`` by method."""


@dataclass(frozen=True)
class Compared:
    """A method on a task.

    Attributes:
        trials: runs of the search on the first seed.
        finals: runs with test rows, by budget, in the order of the seeds.
    """

    method: str
    trials: list[Run]
    finals: Mapping[str, list[Run]]

    @property
    def is_complete(self) -> bool:
        """Whether all seeds of the short budget are there."""
        return [run["seed"] for run in self.finals.get("short", [])] == list(SEEDS)

    @property
    def at_edge(self) -> bool:
        """Whether a neighbor of the winning rates on the ladders was not tried."""
        final = self.finals["short"][0]
        tried = {(run["body_lr"], run["head_lr"]) for run in self.trials}
        return any(pair not in tried for pair in neighbors(final["body_lr"], final["head_lr"]))

    def chosen(self, budget: str) -> Chosen:
        """Return the final runs of a budget for :func:`~benchmarks.accuracy.comparison.difference`."""
        return Chosen(self.method, self.finals[budget][0]["head_lr"], self.finals[budget])


def neighbors(body_lr: float | None, head_lr: float) -> list[tuple[float | None, float]]:
    """Return the pairs of rates that lie one rung from a pair on one of the two ladders."""
    found: list[tuple[float | None, float]] = [(body_lr, rate) for rate in _beside(head_lr)]
    if body_lr is not None:
        found += [(rate, head_lr) for rate in _beside(body_lr)]
    return found


def _beside(rate: float) -> list[float]:
    index = LADDER.index(rate)
    return [LADDER[i] for i in (index - 1, index + 1) if 0 <= i < len(LADDER)]


def read(folder: Path) -> dict[str, list[Run]]:
    """Return the runs of each task that has any."""
    paths = {task: folder / f"{task}.jsonl" for task in TASK_NAMES}
    lines = {task: path.read_text().splitlines() for task, path in paths.items() if path.exists()}
    return {task: [json.loads(line) for line in runs] for task, runs in lines.items() if runs}


def compared(runs: Iterable[Run]) -> dict[str, Compared]:
    """Return the methods of one task that have all their final runs, by name."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    found = {}
    for method, own in by_method.items():
        is_trial = [not run["with_test"] and run["budget"] == "short" and not run["variant"] for run in own]
        trials = [run for run, trial in zip(own, is_trial, strict=True) if trial and run["seed"] == SEEDS[0]]
        finals: dict[str, list[Run]] = {}
        for run in sorted(own, key=lambda run: run["seed"]):
            if run["with_test"]:
                finals.setdefault(run["budget"], []).append(run)
        result = Compared(method, trials, finals)
        if result.is_complete and len(trials) == TRIALS:
            found[method] = result
    return found


def read_costs(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return what each method costs."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {cost["method"]: cost for cost in map(json.loads, lines)}


def overview(runs: Mapping[str, Sequence[Run]], costs: Costs) -> str:
    """A row a method: test accuracy on every task, the distance from the reference on their mean, and costs.

    Each base has tables of its own; costs were measured on the first one.
    """
    parts = []
    for base in BASES:
        tasks = _with_reference(runs, base)
        methods = list(dict.fromkeys(method for task in tasks.values() for method in task))
        for budget, title in (("short", "short budget"), ("converged", "converged")):
            rows = [
                _row(method, {task: found[method] for task, found in tasks.items() if method in found}, tasks, budget)
                + (_costs(costs.get(method)) if base == MINILM else [])
                for method in methods
                if any(method in found and budget in found[method].finals for found in tasks.values())
            ]
            if rows:
                first = f"test accuracy, %, {title}" + ("" if base == MINILM else f", {base}")
                names = [TASK_NAMES[task].partition(" (")[0] for task in tasks]
                head = [first, "trained", *names, "mean", f"less {REFERENCE!r}", "kept ranks"]
                parts.append(table([*head, *(COSTS if base == MINILM else ())], rows))
    return "\n".join(parts)


def _with_reference(runs: Mapping[str, Sequence[Run]], base: str) -> dict[str, dict[str, Compared]]:
    """Return the complete methods of each task of a base that has the reference."""
    tasks = {task: compared(lines) for task, lines in runs.items() if base_of(task) == base}
    return {task: methods for task, methods in tasks.items() if REFERENCE in methods}


def _name(task: str) -> str:
    """Return the name of a task, with its base if that is another than MiniLM."""
    name, base = TASK_NAMES[task].partition(" (")[0], base_of(task)
    return name if base == MINILM else f"{name} on {base}"


def _row(
    method: str, found: Mapping[str, Compared], tasks: Mapping[str, Mapping[str, Compared]], budget: str
) -> list[str]:
    parameters = BASES[base_of(next(iter(found)))]
    own = {task: result for task, result in found.items() if len(result.finals.get(budget, [])) == len(SEEDS)}
    entries = next(iter(found.values())).finals["short"][0]["entries"]
    cells = [_cell(own[task], budget) if task in own else "" for task in tasks]
    is_full = own.keys() == tasks.keys()
    gap = against_reference(own, tasks, budget) if is_full and method != REFERENCE else None
    return [
        f"**{method}**" if method == REFERENCE else method,
        f"{entries / parameters:.3%}" if entries else "-",
        *cells,
        f"{100 * mean(mean(result.chosen(budget).tests) for result in own.values()):.1f}" if is_full else "",
        "" if gap is None else f"**{gap}**" if gap.is_clear else str(gap),
        _kept_ranks([run for result in own.values() for run in result.finals[budget]]),
    ]


PAIRS = (("8 columns, one entry", "random 8 columns, one entry"), ("8 columns", "random 8 columns"))
"""Methods that differ only in how their weights are chosen."""


def pairs(runs: Mapping[str, Sequence[Run]]) -> str:
    """A row a pair of methods: how far the first is ahead, by task and on the mean of the tasks that have both."""
    tasks = {task: compared(lines) for task, lines in runs.items()}
    rows = []
    for one, other in PAIRS:
        both = {task: found for task, found in tasks.items() if one in found and other in found}
        if both:
            chosen = [(found[one].chosen("short"), found[other].chosen("short")) for found in both.values()]
            by_task = [str(difference([first], [second])) for first, second in chosen]
            gap = difference([first for first, _ in chosen], [second for _, second in chosen])
            apart = ", ".join(f"{_name(task)} {points}" for task, points in zip(both, by_task, strict=True))
            rows.append([f"{one} - {other}", apart, f"**{gap}**" if gap.is_clear else str(gap)])
    return table(["points, short budget", "by task", "mean"], rows)


COSTS = ("step", "bytes per token", "file")


def _costs(cost: Mapping[str, Any] | None) -> list[str]:
    """Step over the frozen limit, bytes saved for each token beyond it, and the file; without dropout."""
    if cost is None:
        return [""] * len(COSTS)
    plain = cost["dropout 0"]
    return [
        f"{plain['step']['median']:.2f}",
        f"{plain['saved_bytes_per_token']:,.0f}",
        f"{cost['file_bytes'] / 1000:,.0f} kB",
    ]


def _kept_ranks(runs: Sequence[Run]) -> str:
    kept = [run["kept_ranks"] for run in runs if "kept_ranks" in run]
    return f"{mean(kept):.3f}" if len(kept) == len(runs) else ""


def _cell(result: Compared, budget: str) -> str:
    """Accuracy with its marks: ``e`` where the search ended at an edge, ``f`` where the training loss still falls."""
    runs = result.finals[budget]
    marks = "e" if budget == "short" and result.at_edge else ""
    marks += "f" if mean(run["still_falls"] for run in runs) > 0.5 else ""
    return f"{100 * mean(run['test'] for run in runs):.1f}" + (f" ({marks})" if marks else "")


def against_reference(
    found: Mapping[str, Compared], tasks: Mapping[str, Mapping[str, Compared]], budget: str
) -> Difference | None:
    """Return how far a method lies from the reference on the mean of all tasks, paired by seed."""
    ones = [result.chosen(budget) for result in found.values()]
    references = [tasks[task][REFERENCE] for task in found]
    if any(budget not in reference.finals for reference in references):
        return None
    return difference(ones, [reference.chosen(budget) for reference in references])


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the methods that no other beats: none costs as little or less and has a higher accuracy.

    Args:
        points: (cost, accuracy) of each method.

    Returns:
        Their names, from the cheapest to the dearest.
    """
    best, names = -1.0, []
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            best = accuracy
            names.append(name)
    return names


FEWEST_POINTS = 4
"""Methods that are worth a figure."""


def has_figure(runs: Mapping[str, Sequence[Run]], costs: Costs) -> bool:
    """Return whether the reference and enough other methods have results and costs."""
    methods = {
        method for task, lines in runs.items() if base_of(task) == MINILM for method in compared(lines)
    } & costs.keys()
    return REFERENCE in methods and len(methods) >= FEWEST_POINTS


def figure(runs: Mapping[str, Sequence[Run]], costs: Costs, budget: str = "short") -> Any:
    """Accuracy of MiniLM on the mean of the tasks over seconds of a step, memory and file; a line joins the front."""
    from matplotlib.figure import Figure

    tasks = _with_reference(runs, MINILM)
    accuracy = {
        method: 100 * mean(mean(found[method].chosen(budget).tests) for found in tasks.values())
        for method in costs
        if tasks and all(method in found and budget in found[method].finals for found in tasks.values())
    }
    made = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = made.subplots(1, len(PLACES), sharey=True)
    for axes, (what, place) in zip(panels, PLACES.items(), strict=True):
        points = {method: (place(costs[method]), found) for method, found in accuracy.items()}
        on_front = front(points)
        axes.plot(*zip(*(points[name] for name in on_front), strict=True), color="#bbbbbb", lw=1.2, zorder=1)
        for method, point in points.items():
            own = method in OURS_NAMES
            axes.scatter(*([each] for each in point), s=18, color=OWN if own else RIVAL, zorder=2)
            axes.annotate(method, point, xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        axes.set_xlabel(what)
        axes.margins(x=0.2)
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("test accuracy, %, mean of the tasks")
    return made


PLACES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "step / frozen limit": lambda cost: cost["dropout 0"]["step"]["median"],
    "kB saved for each token beyond the frozen limit": lambda cost: cost["dropout 0"]["saved_bytes_per_token"] / 1000,
    "file, kB": lambda cost: round(cost["file_bytes"] / 1000),  # a few bytes of a header do not make a front
}
"""The costs that the figure shows, each with its place in a line of ``compare_costs.jsonl``."""


def details(runs: Mapping[str, Sequence[Run]]) -> str:
    """A table a task: the learning rates that won, the spread over seeds, steps and processor time."""
    parts = []
    for task, lines in runs.items():
        rows = []
        for method, result in compared(lines).items():
            for budget, finals in result.finals.items():
                rows.append([method, budget, *_detail(finals)])
        if rows:
            head = [
                f"{_name(task)} ({TASK_NAMES[task].partition(' (')[2]}",
                "budget",
                "variant",
                "body rate",
                "head rate",
                "steps",
                "test accuracy, %",
                "CPU s",
            ]
            parts.append(table(head, rows))
    return "\n".join(parts)


def _detail(finals: Sequence[Mapping[str, Any]]) -> list[str]:
    tests = [100 * run["test"] for run in finals]
    first = finals[0]
    return [
        first["variant"] or "-",
        "-" if first["body_lr"] is None else f"{first['body_lr']:g}",
        f"{first['head_lr']:g}",
        f"{mean(run['steps'] for run in finals):.0f}",
        f"{mean(tests):.1f} ({min(tests):.1f} to {max(tests):.1f})",
        f"{mean(run['cpu_seconds'] for run in finals):.0f}",
    ]
