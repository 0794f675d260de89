"""What diff pruning finds with each penalty on gates of matrices, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.protocol import TASK_NAMES
from benchmarks.report.report_accuracy import table

Runs = Mapping[str, Sequence[Mapping[str, Any]]]

WAYS = {
    "sum": "`structured`, `--group-penalty sum`",
    "product": "`structured`, `--group-penalty product`",
    "no gates of matrices": "`unstructured`",
}


def read(folder: Path) -> Runs:
    """Return the runs of each task."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def by_way(runs: Runs) -> str:
    """A row a way: for each task the accuracies of its seeds, the linears with entries and their entries."""
    tasks = [task for task in TASK_NAMES if task in runs]
    head = ["", *(f"{TASK_NAMES[task]}: validation accuracy, linears, entries" for task in tasks)]
    rows = [
        [name, *(_cell([run for run in runs[task] if run["method"] == way]) for task in tasks)]
        for way, name in WAYS.items()
    ]
    return table(head, rows)


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "-"
    accuracies = " and ".join("-" if run["entries"] == 0 else f"{100 * run['validation']:.1f}" for run in runs)
    linears = " and ".join(str(run["linears"]) for run in runs)
    return f"{accuracies}; {linears}; {mean(run['entries'] for run in runs):,.0f}"
