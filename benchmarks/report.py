"""Writes the results of the benchmarks into README.md and docs/benchmarks.md, and draws the figures.

    python benchmarks/report.py               # rewrite the tables and draw the figures
    python benchmarks/report.py --check       # change nothing; exit 1 where a table is out of date

A table stands between `<!-- table:NAME -->` and `<!-- end -->`. One whose results are not there is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/benchmarks.md")
COSTS = ("step_cost", "saved_bytes", "selection_cost", "delta_cost")
TASKS = {"movie-reviews": "Movie reviews (2 classes)", "question-types": "TREC question types (50 classes)"}
RULES = ("taskedge", "gradient", "magnitude", "random")
SCALED = ", scaled step"
PARAMETERS = 22_713_216
"""Of the benchmarks' base model, its head left out."""
MARKED = re.compile(r"(<!-- table:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Result = dict[str, Any]


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A method on a task, at the learning rate with its best validation accuracy on seed 0 (ties to the lower)."""

    method: str
    lr: float
    runs: list[Result]
    """All seeds at that rate."""

    @property
    def tests(self) -> list[float]:
        return [run["test"] for run in self.runs]

    def average(self, fact: str) -> float | None:
        """Over seeds; None where the method has no such fact."""
        known = [run[fact] for run in self.runs if fact in run]
        return mean(known) if known else None


def choose(runs: Sequence[Result]) -> list[Chosen]:
    """Every method of one task at its own rate, in the order in which they were run."""
    chosen = []
    for method in dict.fromkeys(run["method"] for run in runs):
        tried = [run for run in runs if run["method"] == method and run["seed"] == 0]
        if tried:
            lr = max(tried, key=lambda run: (run["validation"], -run["lr"]))["lr"]
            chosen.append(Chosen(method, lr, [run for run in runs if run["method"] == method and run["lr"] == lr]))
    return chosen


class Results:
    """What lies in a folder of results."""

    def __init__(self, folder: Path) -> None:
        paths = [folder / f"{name}.json" for name in COSTS]
        self.costs: list[Result] = [json.loads(path.read_text()) for path in paths if path.exists()]
        self.accuracy: dict[str, list[Result]] = {}
        for task in TASKS:
            path = folder / "accuracy" / f"{task}.jsonl"
            if path.exists():
                self.accuracy[task] = [json.loads(line) for line in path.read_text().splitlines()]


# --- tables -----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column flush left, the others flush right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cost(results: Results) -> str:
    """The figures that have a bar."""
    return _costs(results, lambda line: "bar" in line)


def cost_more(results: Results) -> str:
    """The figures that have none."""
    return _costs(results, lambda line: "bar" not in line)


def _costs(results: Results, wanted: Callable[[Result], bool]) -> str:
    """Figures of training with and without dropout side by side, then those to which dropout means nothing."""
    lines = [line for result in results.costs for line in result["figures"] if wanted(line)]
    settings = sorted({line["dropout"] for line in lines if "dropout" in line}, reverse=True)
    training: dict[str, dict[float, Result]] = {}
    for line in lines:
        if "dropout" in line:
            training.setdefault(line["what"], {})[line["dropout"]] = line
    others = [line for line in lines if "dropout" not in line]
    parts = []
    if training:
        head = ["training", *(f"dropout {share:g}" if share else "no dropout" for share in settings), "bar"]
        rows = [
            [what, *(_measured(by[share]) if share in by else "" for share in settings), _bar(next(iter(by.values())))]
            for what, by in training.items()
        ]
        parts.append(table(head, rows))
    if others:
        parts.append(
            table(
                ["selection, file, command line", "measured", "bar"],
                ([line["what"], _measured(line), _bar(line)] for line in others),
            )
        )
    return "\n".join(_without_empty_last(part) for part in parts)


def _measured(line: Result) -> str:
    low, high = line["quartiles"]
    unit = f" {line['unit']}" if line["unit"] else ""
    spread = f" ({_number(low)} to {_number(high)})" if line["samples"] > 1 else ""
    missed = ", **missed**" if line.get("met") is False else ""
    return f"{_number(line['median'])}{unit}{spread}{missed}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _bar(line: Result) -> str:
    return f"≤ {line['bar']:g}" if "bar" in line else ""


def _without_empty_last(rows: str) -> str:
    """A table without its last column where no cell of that column holds anything."""
    cells = [line.strip("|").split("|") for line in rows.splitlines()]
    if any(line[-1].strip() for line in cells[2:]):
        return rows
    return "".join(f"|{'|'.join(line[:-1])}|\n" for line in cells)


def accuracy(results: Results) -> str:
    """Every method of every task at its own learning rate."""
    head = ["", "entries", "share", "learning rate", "test accuracy", "distinct columns per linear", "stored columns"]
    parts = []
    for task, runs in results.accuracy.items():
        rows = [_accuracy_row(chosen) for chosen in choose(runs)]
        parts.append(table([TASKS[task], *head[1:]], rows))
    return "\n".join(parts)


def _accuracy_row(chosen: Chosen) -> list[str]:
    entries = chosen.runs[0]["entries"]
    columns, stored = chosen.average("columns_mean"), chosen.average("stored_columns")
    half_range = (max(chosen.tests) - min(chosen.tests)) / 2
    spread = f" ± {half_range:.3f}" if len(chosen.tests) > 1 else " (one seed)"
    return [
        chosen.method,
        f"{entries:,}" if entries else "-",
        f"{entries / PARAMETERS:.3%}" if entries else "-",
        f"{chosen.lr:g}",
        f"{mean(chosen.tests):.3f}{spread}",
        "-" if columns is None else f"{columns:.0f}",
        "-" if stored is None else f"{stored:,.0f}",
    ]


def machine(results: Results) -> str:
    """Command, processor and versions of every result."""
    measured = [(result["command"], result["machine"]) for result in results.costs]
    for task, runs in results.accuracy.items():
        measured.append((f"python benchmarks/accuracy.py --task {task}", runs[0]["machine"]))
    rows = (
        [f"`{command}`", about["processor"], *(str(about[key]) for key in ("threads", *PACKAGES))]
        for command, about in measured
    )
    return table(["command", "processor", "threads", *PACKAGES], rows)


PACKAGES = ("python", "torch", "transformers", "peft", "numba", "numpy")
TABLES: dict[str, tuple[Callable[[Results], str], str]] = {  # what writes it, and the results that it needs
    "cost": (cost, "costs"),
    "cost-more": (cost_more, "costs"),
    "accuracy": (accuracy, "accuracy"),
    "machine": (machine, "costs"),
}


def rewritten(text: str, results: Results) -> str:
    """A document with its tables as the results have them."""

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise SystemExit(f"no table is named {name!r} (there are: {', '.join(TABLES)})")
        write, needs = TABLES[name]
        return f"{match[1]}{write(results)}{match[3]}" if getattr(results, needs) else match[0]

    return MARKED.sub(replace, text)


# --- figures ----------------------------------------------------------------------------------------------------------

COLOURS = {"taskedge": "#0072b2", "gradient": "#d55e00", "magnitude": "#009e73", "random": "#666666"}


def draw(results: Results, folder: Path, kind: str = "svg") -> None:
    """``accuracy`` and ``learning-rate`` in ``folder``; the same results give the same bytes."""
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
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}
    for name, figure in (("accuracy", _accuracy_figure(results)), ("learning-rate", _rate_figure(results))):
        figure.savefig(folder / f"{name}.{kind}", facecolor="white", **options)


def _accuracy_figure(results: Results) -> Any:
    """A row per method: each seed a dot, their mean a bar across."""
    from matplotlib.figure import Figure

    chosen = {
        task: [one for one in choose(runs) if SCALED not in one.method] for task, runs in results.accuracy.items()
    }
    methods = list(dict.fromkeys(one.method for ones in chosen.values() for one in ones))
    figure = Figure(figsize=(8.4, 0.32 * len(methods) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, (task, ones) in zip(panels, chosen.items(), strict=True):
        for one in ones:
            place = methods.index(one.method)
            colour = COLOURS.get(one.method, "#aa7fb5")
            centre = mean(one.tests)
            axes.plot([min(one.tests), max(one.tests)], [place, place], color=colour, lw=2, alpha=0.35, zorder=1)
            axes.scatter(one.tests, [place] * len(one.tests), s=14, color=colour, alpha=0.6, lw=0, zorder=2)
            axes.scatter([centre], [place], marker="|", s=150, color=colour, lw=2.2, zorder=3)
            axes.annotate(
                f"{centre:.3f}", (1.0, place), xycoords=("axes fraction", "data"), va="center", ha="right", fontsize=8
            )
        axes.set_title(TASKS[task])
        axes.set_xlabel("test accuracy, each method at its own learning rate")
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.17 * (high - low))  # room for the figures
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


def _rate_figure(results: Results) -> Any:
    """Validation accuracy against learning rate on seed 0: a row per task, plain steps beside scaled ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.7 * len(results.accuracy)), layout="constrained")
    panels = figure.subplots(len(results.accuracy), 2, sharex=True, sharey="row", squeeze=False)
    for row, (task, runs) in zip(panels, results.accuracy.items(), strict=True):
        for axes, suffix, title in zip(
            row, ("", SCALED), ("plain steps", "steps scaled by 1 / input norm"), strict=True
        ):
            for rule in RULES:
                tried = {
                    run["lr"]: run["validation"] for run in runs if (run["method"], run["seed"]) == (rule + suffix, 0)
                }
                rates = sorted(tried)
                accuracies = [tried[rate] for rate in rates]
                axes.plot(rates, accuracies, "o-", ms=4, lw=1.4, color=COLOURS[rule], label=rule)
            axes.set_xscale("log")
            axes.set_title(f"{TASKS[task]}, {title}")
            axes.grid(color="#dddddd", lw=0.6)
            axes.set_axisbelow(True)
        row[0].set_ylabel("validation accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("learning rate")
    panels[0][0].legend(frameon=False, loc="lower left")
    return figure


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds README.md and benchmarks/")
    options = parser.parse_args(arguments)
    results = Results(options.root / "benchmarks" / "results")
    stale = []
    for name in DOCUMENTS:
        path = options.root / name
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, results)
        if after != before:
            stale.append(name)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    if options.check:
        for name in stale:
            print(f"{name}: a table is out of date: run python benchmarks/report.py", file=sys.stderr)
        return int(bool(stale))
    if results.accuracy:
        draw(results, options.root / "docs" / "images")
    print(f"rewrote {', '.join(stale) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
