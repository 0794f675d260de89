"""What kinds.py found, as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report.report_accuracy import table

Run = dict[str, Any]
TITLES = {
    "movie-reviews": "Movie reviews, 2 classes: MiniLM",
    "trec-50": "TREC questions, 50 classes: MiniLM",
    "tweets": "Tweets, 2 classes: MiniLM",
    "sms-spam": "SMS spam, 2 classes: MiniLM",
    "bbc-news": "BBC News, 5 classes: MiniLM",
    "movie-scores": "Scores of movie reviews: MiniLM",
    "fashion-mnist": "Fashion-MNIST, 10 classes: ViT-S",
    "openclipart": "OpenClipart, 8 classes: ViT-S",
    "trec-6": "TREC questions, 6 classes, generated: SmolLM2-135M",
}
VARIANTS = ("no entries", "fp32", "bf16 weights", "bf16 autocast")
MEASURES = {
    "text-classification": ("accuracy",),
    "image-classification": ("accuracy",),
    "text-regression": ("pearson", "mse"),
    "text-generation": ("exact_match", "perplexity"),
}
"""What counts for a kind of task, the first of them most."""
NAMES = {"accuracy": "accuracy, %", "exact_match": "exact match, %", "pearson": "Pearson's r", "mse": "squared error"}


def read(path: Path) -> list[Run]:
    """All runs on file, in the order of ``TITLES``."""
    lines = path.read_text().splitlines() if path.exists() else []
    return sorted(map(json.loads, lines), key=lambda run: (list(TITLES).index(run["workload"]), run["seed"]))


def measured(runs: Sequence[Run]) -> str:
    """A row a workload and measure: test rows, the first seed."""
    rows = []
    for workload, variants in _by_variant(runs).items():
        first = next(iter(variants.values()))[0]
        for measure in MEASURES[first["task"]]:
            cells = [
                _value(measure, variants[name][0]["test"][measure]) if name in variants else "" for name in VARIANTS
            ]
            data = f"{first['train_rows']:,} / {first['test_rows']:,}"
            rows.append([TITLES[workload], data, NAMES.get(measure, measure), *cells])
    return table(["data and model", "rows: train / test", "measured", *VARIANTS], rows)


def costs(runs: Sequence[Run]) -> str:
    """A row a workload and variant: what trains and what that takes, the first seed."""
    rows = []
    for workload, variants in _by_variant(runs).items():
        for name in VARIANTS:
            if name in variants:
                run = variants[name][0]
                share = f"{run['entries']:,} ({run['share']:.3%})" if run["entries"] else "-"
                size = f"{run['file_bytes'] / 1000:,.0f} kB" if "file_bytes" in run else "-"
                rows.append(
                    [
                        TITLES[workload], name, share, f"{run['head']:,}", f"{run['steps']:,}", f"{run['lr']:g}",
                        f"{run['cpu_seconds']:,.0f}", f"{run['peak_memory'] / 1e6:,.0f} MB", size,
                    ]
                )  # fmt: skip
    head = ["entries", "head", "steps", "learning rate", "CPU seconds", "peak memory", "file"]
    return table(["data and model", "variant", *head], rows)


def precision(runs: Sequence[Run]) -> str:
    """A row a workload with several seeds: fp32 beside bf16 weights."""
    rows = []
    for workload, variants in _by_variant(runs).items():
        full, half = (variants.get(name, []) for name in ("fp32", "bf16 weights"))
        if min(len(full), len(half)) < 2:
            continue
        measure = MEASURES[full[0]["task"]][0]
        ours, theirs = ([100 * run["test"][measure] for run in group] for group in (full, half))
        seeds = min(len(ours), len(theirs))
        gap, spread = mean(theirs[:seeds]) - mean(ours[:seeds]), max(ours[:seeds]) - min(ours[:seeds])
        verdict = "yes" if abs(gap) <= spread else "**no**"
        both = [" ".join(f"{value:.1f}" for value in values[:seeds]) for values in (ours, theirs)]
        rows.append([TITLES[workload], *both, f"{gap:+.1f}", f"{spread:.1f}", verdict])
    head = ["fp32, each seed", "bf16 weights, each seed", "difference of the means", "range of fp32", "within it"]
    return table(["test accuracy, %", *head], rows)


def tried(runs: Sequence[Run]) -> str:
    """A row a trial: what was set otherwise, and the validation measures, beside those of the defaults."""
    trials = {(run["workload"], run["variant"]) for run in runs if run["trial"]}
    rows = []
    for run in runs:
        if (run["workload"], run["variant"]) in trials and run["seed"] == 0:
            values = [f"{NAMES.get(it, it)}: {_value(it, run['validation'][it])}" for it in MEASURES[run["task"]]]
            rows.append([TITLES[run["workload"]], run["variant"], run["trial"] or "the defaults", "; ".join(values)])
    return table(["data and model", "variant", "settings", "validation rows"], rows)


def _by_variant(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Workload -> variant -> the runs that saw the test rows, by seed."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if not run["trial"]:
            found.setdefault(run["workload"], {}).setdefault(run["variant"], []).append(run)
    return found


def _value(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    if measure in ("accuracy", "exact_match"):
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
