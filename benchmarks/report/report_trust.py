"""Attacks on cooperative runs and differential privacy as tables: accuracy by who attacks, and by what protects."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.report.report_accuracy import table

Line = dict[str, Any]
AGGREGATORS = {
    "mean, unbounded": "`mean`, `norm_factor` infinite",
    "mean": "`mean`",
    "median": "`median`",
    "trimmed": "`trimmed`",
    "krum": "`krum`",
}
"""The columns of the table of attacks, in order."""
FORMS = {
    "head": "the head alone",
    "entries 0.1%": "entries, 0.1 %",
    "entries 1%": "entries, 1 %",
    "run": "entries, 1 %, a real run in float8",
    "lora": "LoRA of rank 2",
    "full": "all weights and biases",
}
"""The rows of the table of differential privacy, in order."""
EPSILONS = ("none", "8", "3", "1")


def attacks(lines: Sequence[Line]) -> str:
    """A row an attack, a column a way to aggregate: mean test accuracy over seeds and its deviation."""
    names = list(dict.fromkeys(line["attack"] for line in lines))
    columns = [key for key in AGGREGATORS if any(line["aggregator"] == key for line in lines)]
    rows = []
    for name in names:
        cells = [[x["accuracy"] for x in lines if (x["attack"], x["aggregator"]) == (name, key)] for key in columns]
        rows.append([name, *map(_accuracy, cells)])
    return table(["attack by 3 of 9 devices", *(AGGREGATORS[key] for key in columns)], rows)


def privacy(lines: Sequence[Line]) -> str:
    """A row a form, a column a budget. Each form is shown at the rate with the best validation accuracy at ε = 8."""
    rows = []
    for form, name in FORMS.items():
        rated = "entries 1%" if form == "run" else form
        tried = {x["lr"]: x["validation"] for x in lines if (x["form"], x["epsilon"], x["seed"]) == (rated, "8", 0)}
        if not tried:
            continue
        lr = max(tried, key=lambda rate: tried[rate])
        chosen = [line for line in lines if (line["form"], line["lr"]) == (form, lr)]
        cells = [[x["test"] for x in chosen if x["epsilon"] == epsilon] for epsilon in EPSILONS]
        values = next((x["trained_values"] for x in chosen if x["trained_values"]), None)
        rows.append([name, f"{values:,}" if values else "", *map(_accuracy, cells)])
    return table(["what trains", "values", *(f"ε = {e}" if e != "none" else "no privacy" for e in EPSILONS)], rows)


def _accuracy(found: Sequence[float]) -> str:
    """Percent with the deviation over seeds and, if they are not three, how many there are."""
    if not found:
        return ""
    spread = f" ± {100 * stdev(found):.1f}" if len(found) > 1 else ""
    seeds = "" if len(found) == 3 else f" ({len(found)} seed{'s' if len(found) > 1 else ''})"
    return f"{100 * mean(found):.1f}{spread}{seeds}"
