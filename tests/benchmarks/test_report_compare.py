"""The comparison at separate learning rates as a table and a figure."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy import compare
from benchmarks.accuracy.protocol import LADDER, SEEDS, TASK_NAMES, TRIALS
from benchmarks.report import report_compare


def runs_of(method: str, accuracy: float, *, body: float = 1e-2, head: float = 1e-2, tries: int = TRIALS) -> list[Any]:
    """Return the trials around a pair of rates, and five final runs of 1,000 test rows."""
    at, beside = LADDER.index(body), (0, -1, 1)
    pairs = [
        (LADDER[at + i], LADDER[LADDER.index(head) + j])
        for i, j in sorted(itertools.product(beside, beside), key=lambda shift: abs(shift[0]) + abs(shift[1]))
    ][:tries]
    shared = {"method": method, "variant": "", "budget": "short", "entries": 20_736, "steps": 100, "still_falls": False}
    trials = [
        shared | {"body_lr": b, "head_lr": h, "seed": 0, "with_test": False, "validation": 0.9, "validation_loss": 0.3}
        for b, h in pairs
    ]
    finals = []
    for seed in SEEDS:
        hits = np.arange(1000) < round(1000 * accuracy) + seed
        finals.append(
            shared
            | {"body_lr": body, "head_lr": head, "seed": seed, "with_test": True, "validation": 0.9, "cpu_seconds": 50}
            | {"test": float(hits.mean()), "test_rows": 1000, "test_hits": np.packbits(hits).tobytes().hex()}
            | {"kept_ranks": 0.75}
        )
    return trials + finals


def cost(step: float, saved: float, file: float) -> dict[str, Any]:
    return {"file_bytes": file, "dropout 0": {"step": {"median": step}, "saved_bytes_per_token": saved}}


RUNS = {
    "tweets": runs_of("taskedge", 0.90) + runs_of("LoRA r=8", 0.95),
    "question-types": runs_of("taskedge", 0.80) + runs_of("LoRA r=8", 0.85) + runs_of("full", 0.7, tries=5),
}


def test_a_row_has_accuracy_distance_and_costs() -> None:
    shown = report_compare.overview(RUNS, {"LoRA r=8": cost(1.333, 56_789, 1_340_000)}).splitlines()
    assert shown[2].startswith("| **taskedge** | 0.091% | 90.2 | 80.2 | 85.2 |  | 0.750 |")
    assert shown[3].startswith("| LoRA r=8 | 0.091% | 95.2 | 85.2 | 90.2 | **+5.0")
    assert shown[3].endswith("| 1.33 | 56,789 | 1,340 kB |")


def test_a_method_without_all_its_trials_has_no_row() -> None:
    assert "full" not in report_compare.overview(RUNS, {})
    assert "full" not in report_compare.details(RUNS)


def test_a_pair_is_compared_on_the_tasks_that_have_both() -> None:
    one, other = report_compare.PAIRS[0]
    runs = {
        "tweets": runs_of(one, 0.90) + runs_of(other, 0.85),
        "question-types": runs_of(one, 0.80) + runs_of(other, 0.79),
        "sms-spam": runs_of(one, 0.95),
    }
    (row,) = report_compare.pairs(runs).splitlines()[2:]
    assert row.startswith(f"| {one} - {other} | Tweets +5.0")
    assert "TREC questions +1.0" in row
    assert "| **+3.0" in row
    assert "SMS" not in row


def test_the_front_has_what_no_other_method_beats() -> None:
    points = {"cheap": (1.0, 80.0), "dear": (3.0, 90.0), "beaten": (2.0, 79.0), "equal": (4.0, 90.0)}
    assert report_compare.front(points) == ["cheap", "dear"]


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_the_front_equals_its_definition(points: dict[str, tuple[int, int]]) -> None:
    beaten = {
        name
        for name, (price, gain) in points.items()
        if any(p <= price and g >= gain and (p, g) != (price, gain) for p, g in points.values())
    }
    kept = {points[name] for name in report_compare.front(points)}
    assert kept == {points[name] for name in points if name not in beaten}


def test_the_figure_shows_methods_with_costs_on_all_tasks() -> None:
    pytest.importorskip("matplotlib")
    costs = {"taskedge": cost(1.03, 8172, 132_000), "LoRA r=8": cost(1.34, 56_789, 1_340_000), "full": cost(2, 9, 9)}
    assert not report_compare.has_figure(RUNS, costs)  # two methods
    more = {"tweets": RUNS["tweets"] + runs_of("full", 0.9) + runs_of("BitFit", 0.9)}
    assert report_compare.has_figure(more, costs | {"BitFit": cost(1, 1, 1)})
    made = report_compare.figure(RUNS, costs)
    assert [{text.get_text() for text in axes.texts} for axes in made.axes] == [{"taskedge", "LoRA r=8"}] * 3


def test_each_base_has_a_table_of_its_own() -> None:
    """Shares are those of the base, and costs of the first base say nothing about the second."""
    both = RUNS | {"tweets-mpnet": runs_of("taskedge", 0.94) + runs_of("LoRA r=8", 0.95)}
    first, second = report_compare.overview(both, {"LoRA r=8": cost(1.333, 56_789, 1_340_000)}).split("\n\n")
    assert first.strip() == report_compare.overview(RUNS, {"LoRA r=8": cost(1.333, 56_789, 1_340_000)}).strip()
    lines = second.splitlines()
    assert lines[0].startswith("| test accuracy, %, short budget, MPNet-base | trained | Tweets | mean |")
    assert lines[0].endswith("| kept ranks |")
    assert lines[2].startswith("| **taskedge** | 0.019% | 94.2 | 94.2 |")
    assert "| Tweets on MPNet-base (2 classes) | budget |" in report_compare.details(both)
    assert not report_compare.has_figure({"tweets-mpnet": both["tweets-mpnet"]}, {})


def test_the_tasks_of_the_reports_are_those_of_the_comparison() -> None:
    assert compare.TASKS.keys() == TASK_NAMES.keys()
    for task, settings in compare.TASKS.items():
        twin = task.removesuffix("-mpnet")
        assert (settings.base is compare.TASKS[twin].base) == (task == twin)
        assert settings.table is compare.TASKS[twin].table
        assert (settings.epochs, settings.longest) == (compare.TASKS[twin].epochs, compare.TASKS[twin].longest)
