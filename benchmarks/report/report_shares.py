"""Accuracy against the trained share, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.accuracy.comparison import TASKS, Run
from benchmarks.report.report_accuracy import COLORS, table

Runs = Mapping[str, Sequence[Run]]
"""By task."""


def tests(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Rule -> share -> the test accuracy of every seed, shares ascending."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in sorted(runs, key=lambda run: (_percent(run), run["seed"])):
        rule, _, share = run["method"].partition(", ")
        found.setdefault(rule, {}).setdefault(share, []).append(run["test"])
    return found


def by_share(runs: Runs) -> str:
    """A table a task: a row a rule, a column a share; the mean over seeds and half their range."""
    parts = []
    for task, lines in runs.items():
        found = tests(lines)
        shares = dict.fromkeys(share for accuracies in found.values() for share in accuracies)
        rows = ([rule, *(_cell(by.get(share, [])) for share in shares)] for rule, by in found.items())
        parts.append(table([TASKS[task], *(share.replace("%", " %") for share in shares)], rows))
    return "\n".join(parts)


def _percent(run: Run) -> float:
    return float(run["method"].partition(", ")[2].rstrip("%"))


def _cell(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return ""
    spread = f" ± {(max(accuracies) - min(accuracies)) / 2:.3f}" if len(accuracies) > 1 else " (one seed)"
    return f"{mean(accuracies):.3f}{spread}"


def figure(runs: Runs) -> Any:
    """A panel a task: the mean over seeds a line, each seed a dot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(3.4 * len(runs) + 0.6, 3.1), layout="constrained")
    panels = made.subplots(1, len(runs), squeeze=False)[0]
    for axes, (task, lines) in zip(panels, runs.items(), strict=True):
        for rule, by in tests(lines).items():
            places = [float(share.rstrip("%")) for share in by]
            axes.plot(places, [mean(accuracies) for accuracies in by.values()], lw=1.4, color=COLORS[rule], label=rule)
            for place, accuracies in zip(places, by.values(), strict=True):
                axes.scatter([place] * len(accuracies), accuracies, s=9, lw=0, alpha=0.6, color=COLORS[rule])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(TASKS[task].partition(" (")[0])
        axes.set_xlabel("trained share of the model, %")
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(frameon=False)
    return made
