"""``taskedge combine``, and ``eval --head`` of its result."""

from __future__ import annotations

import json

import pytest
import tiny_task

import taskedge as te


@pytest.fixture(scope="module")
def deltas(task, tmp_path_factory):
    """Two deltas of one base, with two and three classes."""
    folder = tmp_path_factory.mktemp("deltas")
    tiny_task.table(folder / "three.csv", tiny_task.rows(48, seed=5, names=("x", "y", "z")))
    for name, more in {"mood": (), "kind": ("--train", folder / "three.csv", "--seed", 3)}.items():
        ended = tiny_task.forked(tiny_task.tuning(task, *more, "--out", folder / f"{name}.safetensors"))
        assert ended.code == 0, ended.err
    return folder


def test_two_tasks_in_one_file(taskedge, deltas, here, task):
    done = taskedge("combine", deltas / "mood.safetensors", deltas / "kind.safetensors", "--out", "both.safetensors")
    assert done.code == 0, done.err
    assert "both.safetensors: " in done.out
    assert "heads mood, kind (choose one with --head)" in done.out
    first = next(line for line in done.err.splitlines() if "shared entries" in line)
    assert first.startswith("mood and kind: ")
    refused = taskedge("eval", "both.safetensors", "--data", task / "eval.csv")
    assert refused.code == 2
    assert "heads mood, kind: name one of them (--head)" in refused.err
    measured = taskedge("eval", "both.safetensors", "--head", "mood", "--data", task / "eval.csv", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["rows"] == 40
    told = taskedge("info", "both.safetensors")
    assert "head      kind: text-classification, 'x', 'y', 'z'" in told.out
    merged = taskedge("merge", "both.safetensors", "--head", "kind", "--out", "merged")
    assert merged.code == 0, merged.err


@pytest.mark.slow
def test_selective_reads_data_of_each_task(taskedge, deltas, here, task):
    arguments = (
        "combine",
        deltas / "mood.safetensors",
        f"other={deltas / 'kind.safetensors'}",
        "--method",
        "selective",
    )
    few = taskedge(*arguments, "--data", task / "eval.csv", "--out", "both.safetensors")
    assert few.code == 2
    assert "give --data 2 times" in few.err
    done = taskedge(
        *arguments, "--data", task / "eval.csv", "--data", deltas / "three.csv", "--density", "1/2", "--weight", 1,
        "--weight", 0.5, "--importance", "weight", "--importance-at", "tuned", "--out", "both.safetensors", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    combined = te.load("both.safetensors")
    assert told["heads"] == list(combined.heads) == ["mood", "other"]
    assert combined.provenance.training["combined"]["weights"] == [1.0, 0.5]
    kept = [line for line in told["notes"] if "are kept" in line]
    assert len(kept) == 2


def test_forgetting(taskedge, deltas, here):
    done = taskedge("combine", "--subtract", deltas / "mood.safetensors", "--out", "less.safetensors", "--weight", 0.5)
    assert done.code == 0, done.err
    less, whole = te.load("less.safetensors"), te.load(deltas / "mood.safetensors")
    assert not less.heads
    assert less.num_entries <= whole.num_entries


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "x"), "name one or more delta files"),
        (("missing.safetensors", "--out", "x"), "missing.safetensors: cannot be read"),
        (("a=missing", "--method", "ties", "--importance", "weight", "--out", "x"), "are for --method selective"),
    ],
)
def test_what_cannot_be_used(taskedge, here, arguments, message):
    done = taskedge("combine", *arguments)
    assert done.code == 2
    assert message in done.err


def test_an_input_is_not_replaced(taskedge, deltas, here):
    path = deltas / "mood.safetensors"
    done = taskedge("combine", path, "--out", path, "--replace")
    assert done.code == 2
    assert "which this command reads" in done.err
