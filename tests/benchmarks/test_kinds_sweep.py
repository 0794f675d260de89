"""A sweep over the kinds of task knows what it has done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")  # of the benchmarks that it shares code with
from benchmarks.tasks import kinds


def test_runs_on_file_are_not_wanted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "PATH", tmp_path / "kinds.jsonl")
    assert not kinds.done()
    run = {"workload": "trec-6", "variant": "fp32", "seed": 0}
    runs = [run | {"trial": trial} for trial in ("", "lr=0.01", "lr=0.03 batch_size=8")]
    kinds.PATH.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert kinds.done() == {
        *kinds.wanted(["trec-6"], ["fp32"], []),
        *kinds.wanted(["trec-6"], ["fp32"], ["lr=0.01", "lr=0.03 batch_size=8"]),
    }


def test_a_trial_changes_its_settings_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = kinds.Workload(lambda: tmp_path, dict, settings={"epochs": 1.0})
    monkeypatch.setitem(kinds.WORKLOADS, "tweets", workload)
    usual = kinds.settings_of("tweets", "bf16 weights", 2, {}, tmp_path)
    other = kinds.settings_of("tweets", "bf16 weights", 2, {"batch_size": "8"}, tmp_path)
    assert (usual.epochs, usual.dtype, usual.seed, usual.threads) == (1.0, "bf16", 2, 1)
    assert other == usual.model_copy(update={"batch_size": 8})


def test_seeds_are_those_of_the_comparison_of_dtypes() -> None:
    runs = kinds.wanted(["movie-reviews"], list(kinds.VARIANTS), [])
    assert [run[1:] for run in runs] == [
        ("fp32", "", 0), ("bf16 weights", "", 0), ("bf16 autocast", "", 0), ("no entries", "", 0),
        ("fp32", "", 1), ("bf16 weights", "", 1), ("fp32", "", 2), ("bf16 weights", "", 2),
    ]  # fmt: skip


def test_held_out_rows_of_classes_that_training_lacks_are_left_out(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    rows = [(f"text {place}", "common") for place in range(30)] + [("text x", "a rare one")]
    kinds.assets.write_rows(table, rows)
    parts = kinds.texts(lambda: table, 15, 5, 11)()
    assert {part: len(found) for part, found in parts.items()} == {"train": 15, "validation": 5, "test": 10}
    assert {label for found in parts.values() for _, label in found} == {"common"}
