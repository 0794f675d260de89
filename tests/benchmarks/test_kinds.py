"""A sweep over the kinds of task knows what it has done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")  # of the benchmarks that it shares code with
import kinds


def test_runs_on_file_are_not_wanted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "PATH", tmp_path / "kinds.jsonl")
    assert kinds.done() == {}
    default = {"workload": "trec-6", "variant": "fp32", "trial": False, "lr": 0.03, "seed": 0}
    runs = [default | {"settings": {"batch_size": 32}}]
    runs += [default | {"trial": True, "lr": rate, "settings": {"batch_size": 8}} for rate in (0.01, 0.03)]
    kinds.PATH.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert set(kinds.done()) == {
        *kinds.wanted(["trec-6"], ["fp32"], [], None),
        *kinds.wanted(["trec-6"], ["fp32"], [0.01, 0.03], 8),
    }
    assert not kinds.done().keys() & set(kinds.wanted(["trec-6"], ["fp32"], [0.03], 32))


def test_seeds_are_those_of_the_comparison_of_dtypes() -> None:
    runs = kinds.wanted(["movie-reviews"], list(kinds.VARIANTS), [], None)
    assert [run[1:4] for run in runs] == [
        ("fp32", None, 0), ("bf16 weights", None, 0), ("bf16 autocast", None, 0), ("no entries", None, 0),
        ("fp32", None, 1), ("bf16 weights", None, 1), ("fp32", None, 2), ("bf16 weights", None, 2),
    ]  # fmt: skip


def test_held_out_rows_of_classes_that_training_lacks_are_left_out(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    rows = [(f"text {place}", "common") for place in range(30)] + [("text x", "a rare one")]
    kinds.assets.write_rows(table, rows)
    parts = kinds.texts(lambda: table, 15, 5, 11)()
    assert {part: len(found) for part, found in parts.items()} == {"train": 15, "validation": 5, "test": 10}
    assert {label for found in parts.values() for _, label in found} == {"common"}
