"""Results of the planner as tables: how fast and how good the solvers are, and what planning saves with fading."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report.report_accuracy import table

Result = dict[str, Any]
FILES = ("planning_quality", "planning_scale", "planning_headline")


def read(folder: Path) -> dict[str, Result]:
    """The details of the results by name; empty unless all are there."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {name: json.loads(path.read_text())["details"] for name, path in paths.items()}


def solvers(results: dict[str, Result]) -> str:
    """A row a question: seconds of the solvers, their distance from an optimum and that of their bounds."""
    quality, scale = results["planning_quality"], results["planning_scale"]
    several, ascent = quality["several"], quality["dual_ascent_against_exact"]
    small = [row for row in scale["any_number"] if row["blocks"] == 12]
    proved = sum(row["exact"]["stopped"] == "optimal" for row in small)
    sizes, seconds = [str(row["devices"]) for row in small], [f"{_cpu(row['exact']):.2f}" for row in small]
    large = next(row for row in scale["any_number"] if (row["devices"], row["blocks"]) == (60, 96))["several"]
    most = max(row["devices"] for row in scale["rows"])
    usual, hard = (
        next(row for row in scale["rows"] if row["devices"] == most and row["anticorrelated"] is anticorrelated)
        for anticorrelated in (False, True)
    )
    cases = f"({several['cases']} cases)"
    wired, radio = several["gap_to_highs"], several["gap_to_exact_on_radio"]
    gap, bound, apart = (ascent[key] for key in ("gap_dual_ascent", "bound_distance", "gap_of_one_each_to_all_plans"))
    rows = [
        [
            f"`exact`, 12 blocks: CPU seconds on {', '.join(sizes[:-1])} and {sizes[-1]} devices",
            f"{', '.join(seconds)} s, {'all' if proved == len(small) else proved} proved",
            "`planning_scale.json`",
        ],
        [
            "`several`, 60 devices x 96 blocks: CPU seconds, gap to its bound",
            f"{_cpu(large):.1f} s, {_percent(large['gap'])}",
            "`planning_scale.json`",
        ],
        [
            f"`one-each`, {most:,} devices x {usual['blocks']} blocks: CPU seconds",
            f"{_cpu(usual['one-each']):.1f} s; "
            f"{_cpu(hard['one-each']):.1f} s if every faster device has the worse radio",
            "`planning_scale.json`",
        ],
        [
            f"`several` above HiGHS at fixed rates {cases}: mean, worst",
            f"{_percent(wired['mean'])}, {_percent(wired['worst'])}",
            "`planning_quality.json`",
        ],
        [
            f"`several` above the proved optimum on the radio {cases}: mean, worst",
            f"{_percent(radio['mean'])}, {_percent(radio['worst'])}",
            "`planning_quality.json`",
        ],
        [
            "bound of `several` below the optimum: mean on cables, on the radio",
            f"{_percent(several['bound_distance_to_highs']['mean'])}, "
            f"{_percent(several['bound_distance_on_radio']['mean'])}",
            "`planning_quality.json`",
        ],
        [
            f"`dual-ascent` above `one-each` ({ascent['cases']} cases): mean, worst; its bound below `one-each`: mean",
            f"{_percent(gap['mean'])}, {_percent(gap['worst'])}; {_percent(bound['mean'])}",
            "`planning_quality.json`",
        ],
        [
            f"`one-each` above `exact` ({ascent['cases']} cases): median, 95th percentile",
            f"{_percent(apart['p50'])}, {_percent(apart['p95'])}",
            "`planning_quality.json`",
        ],
    ]
    return table(["measured, one core", "result", "file"], rows)


def savings(results: dict[str, Result]) -> str:
    """A row a solver, a column a setting: mean seconds of a round, and what ``exact`` saves over the fleets."""
    settings: dict[str, dict[str, Result]] = results["planning_headline"]["solvers"]
    names = next(iter(settings.values()))
    head = ["solver", *(f"{title}: mean round, exact saves" for title in settings)]
    return table(head, ([f"`{name}`", *(_saved(name, rows[name]) for rows in settings.values())] for name in names))


def _saved(name: str, row: Result) -> str:
    if row["seconds"] is None:
        return "no plan"
    seconds = f"{row['seconds']['mean']:.2f} s"
    if name == "exact":
        return seconds
    saved = [100 * share for share in row["exact_saves_of_the_mean_per_fleet"]]
    return f"{seconds}, {mean(saved):.1f} % ({min(saved):.1f} to {max(saved):.1f})"


def _cpu(timed: Result) -> float:
    return float(timed["least_cpu_seconds"])


def _percent(share: float) -> str:
    percent = 100 * share
    digits = 0 if percent >= 20 else 1 if percent >= 0.5 else 2 if percent >= 0.05 else 3
    return f"{percent:.{digits}f} %"
