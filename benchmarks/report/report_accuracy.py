"""The accuracy benchmark as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.comparison import TASKS, Chosen, Difference, Run, choose, difference

REFERENCE = "taskedge, scaled step"
SCALED = ", scaled step"
RULES = ("taskedge", "gradient", "magnitude", "random")
PARAMETERS = 22_713_216
"""Of the benchmarks' base model, its head left out."""

Runs = Mapping[str, Sequence[Run]]
"""By task."""
Costs = Mapping[str, Mapping[str, Any]]
"""What method_costs.py measured, by method."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column flush left, the others flush right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


NOT_COMPARABLE = ("SHiRA r=1", "Super-Tuning", "full", "LoRA r=8", "LoRA r=1", "BitFit", "SPT")
"""Methods whose accuracy is not reported.

Every run trained the head at the learning rate of the body, and these methods need a smaller rate for the body than the
head does. A comparison needs separate rates for both.
"""


def comparable(lines: Sequence[Run]) -> list[Chosen]:
    """Return the runs of each method at its own learning rate, without the methods of `NOT_COMPARABLE`."""
    return [chosen for chosen in choose(lines) if chosen.method not in NOT_COMPARABLE]


def by_method(runs: Runs) -> dict[str, dict[str, Chosen]]:
    """Method -> task -> the method's runs there; those on all tasks first, best mean first."""
    found: dict[str, dict[str, Chosen]] = {}
    for task, lines in runs.items():
        for chosen in comparable(lines):
            found.setdefault(chosen.method, {})[task] = chosen
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), -_mean(item[1]))))


def against_reference(found: Mapping[str, Mapping[str, Chosen]], method: str) -> Difference | None:
    """How far the method lies from the reference on the mean of all tasks; None where one lacks runs on some task."""
    tasks = list(found.get(REFERENCE, {}))
    if method == REFERENCE or not tasks or found[method].keys() < set(tasks):
        return None
    return difference([found[method][task] for task in tasks], [found[REFERENCE][task] for task in tasks])


LABELED_FIRST = (REFERENCE, "taskedge, 32 columns", "random, scaled step", "head only")
"""Methods whose labels have priority in a figure."""


def overview(runs: Runs, costs: Costs) -> str:
    """A row a method: every task, their mean, the distance from the reference, and what the method costs."""
    found = by_method(runs)
    head = [
        "test accuracy, %", "trained", *(TASKS[task].partition(" (")[0] for task in runs), "mean",
        f"less {REFERENCE!r}", "step", "bytes per token", "file",
    ]  # fmt: skip
    rows = []
    for method, tasks in found.items():
        gap = against_reference(found, method)
        cells = [f"{100 * mean(tasks[task].tests):.1f}" if task in tasks else "" for task in runs]
        rows.append(
            [
                f"**{method}**" if method == REFERENCE else method,
                _share(next(iter(tasks.values()))),
                *cells,
                f"{100 * _mean(tasks):.1f}" if len(tasks) == len(runs) else "",
                "" if gap is None else f"**{gap}**" if gap.is_clear else str(gap),
                *_costs(costs.get(method)),
            ]
        )
    return table(head, rows)


def by_task(runs: Runs) -> str:
    """A table a task: every method at its own learning rate."""
    head = ["entries", "share", "learning rate", "test accuracy", "distinct columns per linear", "stored columns"]
    return "\n".join(table([TASKS[task], *head], map(_row, comparable(lines))) for task, lines in runs.items())


def _row(chosen: Chosen) -> list[str]:
    entries = chosen.runs[0]["entries"]
    columns, stored = chosen.average("columns_mean"), chosen.average("stored_columns")
    half_range = (max(chosen.tests) - min(chosen.tests)) / 2
    spread = f" ± {half_range:.3f}" if len(chosen.tests) > 1 else " (one seed)"
    return [
        chosen.method,
        f"{entries:,}" if entries else "-",
        _share(chosen),
        f"{chosen.lr:g}",
        f"{mean(chosen.tests):.3f}{spread}",
        "-" if columns is None else f"{columns:.0f}",
        "-" if stored is None else f"{stored:,.0f}",
    ]


def _share(chosen: Chosen) -> str:
    entries = chosen.runs[0]["entries"]
    return f"{entries / PARAMETERS:.3%}" if entries else "-"


def _costs(cost: Mapping[str, Any] | None) -> list[str]:
    """Step over the frozen limit, bytes saved per token above it, file; without dropout."""
    if cost is None:
        return ["", "", ""]
    plain = cost["dropout 0"]
    return [
        f"{plain['step']['median']:.2f}",
        f"{plain['saved_bytes_per_token']:,.0f}",
        f"{cost['file_bytes'] / 1000:,.0f} kB",
    ]


def _mean(tasks: Mapping[str, Chosen]) -> float:
    return mean(mean(chosen.tests) for chosen in tasks.values())


# --- figures ----------------------------------------------------------------------------------------------------------

COLORS = {"taskedge": "#0072b2", "gradient": "#d55e00", "magnitude": "#009e73", "random": "#666666"}


def figures(runs: Runs, costs: Costs) -> dict[str, Any]:
    """``accuracy``, ``learning-rate`` and, where costs are known, ``trade-off``."""
    _style()
    made = {"accuracy": _accuracy_figure(runs), "learning-rate": _rate_figure(runs)}
    return made | ({"trade-off": _trade_figure(runs, costs)} if costs else {})


def save(made: Mapping[str, Any], folder: Path, kind: str = "svg") -> None:
    """Each in a file of its name; the same results give the same bytes."""
    _style()
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
    for name, figure in made.items():
        figure.savefig(folder / f"{name}.{kind}", facecolor="white", **options)


def _style() -> None:
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams |= {
        "svg.hashsalt": "taskedge",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
    }


def _colour(method: str) -> str:
    return COLORS.get(method.partition(",")[0], "#aa7fb5")


def _accuracy_figure(runs: Runs) -> Any:
    """A row per method: each seed a dot, their mean a bar across; a panel per task, and one of distances."""
    from matplotlib.figure import Figure

    found = by_method(runs)
    figure = Figure(figsize=(2.3 * (len(runs) + 1) + 1.6, 0.28 * len(found) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(runs) + 1, sharey=True, squeeze=False)[0]
    for place, (method, tasks) in enumerate(found.items()):
        color = _colour(method)
        for axes, task in zip(panels, runs, strict=False):
            if task in tasks:
                tests = tasks[task].tests
                axes.plot([min(tests), max(tests)], [place, place], color=color, lw=2, alpha=0.35, zorder=1)
                axes.scatter(tests, [place] * len(tests), s=10, color=color, alpha=0.6, lw=0, zorder=2)
                axes.scatter([mean(tests)], [place], marker="|", s=110, color=color, lw=2.2, zorder=3)
        gap = against_reference(found, method)
        if gap is not None:
            panels[-1].errorbar([100 * gap.mean], [place], xerr=[100 * gap.half], fmt="o", ms=3.5, color=color)
    for axes, task in zip(panels, runs, strict=False):
        axes.set_title(TASKS[task].partition(" (")[0])
        axes.set_xlabel("test accuracy")
    panels[-1].axvline(0, color="#0072b2", lw=0.8)
    panels[-1].set_xscale("symlog", linthresh=2)
    panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set_title("less the default, points")
    panels[-1].set_xlabel("mean of the tasks, 95 %")
    for axes in panels:
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(found)), list(found))
    panels[0].set_ylim(len(found) - 0.5, -0.5)
    return figure


def _trade_figure(runs: Runs, costs: Costs) -> Any:
    """Mean accuracy against what training keeps, what is kept on the disk, and what is trained."""
    from matplotlib.figure import Figure

    found = {method: tasks for method, tasks in by_method(runs).items() if len(tasks) == len(runs)}
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    places = {
        "bytes saved per token, above the frozen limit": lambda cost: cost["dropout 0"]["saved_bytes_per_token"],
        "file, bytes": lambda cost: cost["file_bytes"],
        "trained share": lambda cost: cost["entries"] / PARAMETERS,
    }
    for axes, (what, place) in zip(panels, places.items(), strict=True):
        points = {
            method: (place(costs[method]), _mean(tasks))
            for method, tasks in found.items()
            if method in costs and place(costs[method]) > 0
        }
        for method, point in points.items():
            axes.scatter(*([each] for each in point), s=18, color=_colour(method))
        for method in _labelled(points):
            axes.annotate(method, points[method], xytext=(4, 2), textcoords="offset points", fontsize=6.5)
        axes.set_xscale("log")
        axes.set_xlabel(what)
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("test accuracy, mean of the tasks")
    return figure


def _labelled(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Whose names can stand beside their points without covering others; those of `LABELED_FIRST` come first."""
    width = math.log(max(x for x, _ in points.values()) / min(x for x, _ in points.values())) or 1.0
    found: list[str] = []
    order = [*(method for method in LABELED_FIRST if method in points), *points]
    for method in dict.fromkeys(order):
        x, y = points[method]
        covered = any(
            abs(math.log(x / points[other][0])) < 0.3 * width and abs(y - points[other][1]) < 0.006 for other in found
        )
        if not covered:
            found.append(method)
    return found


def _rate_figure(runs: Runs) -> Any:
    """Validation accuracy against learning rate on seed 0: a column per task, plain steps above scaled ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(runs) + 0.6, 4.6), layout="constrained")
    panels = figure.subplots(2, len(runs), sharex=True, sharey="col", squeeze=False)
    for row, suffix, title in zip(panels, ("", SCALED), ("plain steps", "scaled steps"), strict=True):
        for axes, (task, lines) in zip(row, runs.items(), strict=True):
            for rule in RULES:
                tried = {
                    run["lr"]: run["validation"] for run in lines if (run["method"], run["seed"]) == (rule + suffix, 0)
                }
                rates = sorted(tried)
                accuracies = [tried[rate] for rate in rates]
                axes.plot(rates, accuracies, "o-", ms=4, lw=1.4, color=COLORS[rule], label=rule)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(f"{TASKS[task].partition(' (')[0]}, {title}", fontsize=8.5)
            axes.grid(color="#dddddd", lw=0.6)
            axes.set_axisbelow(True)
        row[0].set_ylabel("validation accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("learning rate")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=len(RULES), frameon=False)
    return figure
