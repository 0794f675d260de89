"""Tables of the runs of every kind of task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import report_kinds


def run(workload: str, variant: str, test: dict[str, Any] | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    facts = {
        "workload": workload, "variant": variant, "trial": "", "seed": seed, "task": "text-classification",
        "lr": 0.03, "entries": 22713, "share": 0.001, "head": 768, "steps": 94, "cpu_seconds": 61.4, "test_rows": 998,
        "train_rows": 1000, "peak_memory": 1_234_000_000, "file_bytes": 150_400, "validation": {"accuracy": 0.5},
    }  # fmt: skip
    return facts | ({} if test is None else {"test": test}) | more


GENERATED = {"task": "text-generation", "head": 0}
RUNS = [
    run("movie-reviews", "fp32", {"accuracy": 0.80}),
    run("movie-reviews", "fp32", {"accuracy": 0.82}, seed=1),
    run("movie-reviews", "bf16 weights", {"accuracy": 0.81}),
    run("movie-reviews", "bf16 weights", {"accuracy": 0.79}, seed=1),
    run("trec-50", "fp32", {"accuracy": 0.800}),
    run("trec-50", "fp32", {"accuracy": 0.805}, seed=1),
    run("trec-50", "bf16 weights", {"accuracy": 0.7}),
    run("trec-50", "bf16 weights", {"accuracy": 0.7}, seed=1),
    run("trec-6", "fp32", {"exact_match": 0.7, "perplexity": 1.25}, validation={"exact_match": 0.6, "perplexity": 1.5},
        **GENERATED),
    run("trec-6", "no entries", {"exact_match": 0.0, "perplexity": 1234.5}, entries=0, **GENERATED),
    run("trec-6", "fp32", None, trial="lr=0.01", validation={"exact_match": 0.9, "perplexity": 1.1}, **GENERATED),
]  # fmt: skip


def test_every_measure_has_a_row_and_every_variant_a_column() -> None:
    rows = report_kinds.measured(RUNS).splitlines()[2:]
    assert rows == [
        "| Movie reviews, 2 classes: MiniLM | 1,000 / 998 | accuracy, % |  | 80.0 | 81.0 |  |",
        "| TREC questions, 50 classes: MiniLM | 1,000 / 998 | accuracy, % |  | 80.0 | 70.0 |  |",
        "| TREC questions, 6 classes, generated: SmolLM2-135M | 1,000 / 998 | exact match, % | 0.0 | 70.0 |  |  |",
        "| TREC questions, 6 classes, generated: SmolLM2-135M | 1,000 / 998 | perplexity | 1,234 | 1.250 |  |  |",
    ]


def test_costs_leave_out_what_a_run_does_not_have() -> None:
    text = report_kinds.costs(RUNS)
    assert "MiniLM | fp32 | 22,713 (0.100%) | 768 | 94 | 0.03 | 61 | 1,234 MB | 150 kB |" in text
    assert "SmolLM2-135M | no entries | - | 0 |" in text


def test_precision_says_whether_bf16_lies_within_the_range_of_the_seeds() -> None:
    rows = report_kinds.precision(RUNS).splitlines()[2:]
    assert rows == [
        "| Movie reviews, 2 classes: MiniLM | 80.0 82.0 | 81.0 79.0 | -1.0 | 2.0 | yes |",
        "| TREC questions, 50 classes: MiniLM | 80.0 80.5 | 70.0 70.0 | -10.2 | 0.5 | **no** |",
    ]


def test_trials_stand_beside_the_defaults() -> None:
    title = report_kinds.TITLES["trec-6"]  # on no other workload anything else was tried
    assert report_kinds.tried(RUNS).splitlines()[2:] == [
        f"| {title} | fp32 | the defaults | exact match, %: 60.0; perplexity: 1.500 |",
        f"| {title} | fp32 | lr=0.01 | exact match, %: 90.0; perplexity: 1.100 |",
    ]


def test_runs_are_read_in_the_order_of_the_tables(tmp_path: Path) -> None:
    assert report_kinds.read(tmp_path / "kinds.jsonl") == []
    path = tmp_path / "kinds.jsonl"
    path.write_text("".join(json.dumps(run) + "\n" for run in reversed(RUNS)))
    assert [run["workload"] for run in report_kinds.read(path)] == [run["workload"] for run in RUNS]
