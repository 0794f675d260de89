"""``taskedge predict``: one line per row, in the order of the rows; a file is complete or absent."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import tiny_task
from killed_runs import killed_at
from tiny_task import forked, snapshot, tuning

from taskedge.cli import predict
from taskedge.training import prediction_run


@pytest.fixture
def data(here):
    """Texts of very different lengths, without labels."""
    texts = [text for text, _ in tiny_task.rows(50, seed=3)]
    tiny_task.table(here / "new.csv", [(text,) for text in texts], header=("text",))
    return texts


def test_csv(taskedge, tuned, here, data):
    ended = taskedge("predict", tuned[0], "--data", "new.csv")
    assert ended.code == 0
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [int(row["row"]) for row in rows] == list(range(1, 51))
    assert {row["label"] for row in rows} <= {"neg", "pos"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)


def test_an_output_that_another_process_writes(taskedge, tuned, here, data):
    from taskedge.io.lock import hold_lock

    with hold_lock(here / "out.csv"):
        for more in ([], ["--replace"]):
            ended = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "out.csv", *more)
            assert ended.code == 2
            assert "out.csv is in use by process" in ended.err
    assert taskedge("predict", tuned[0], "--data", "new.csv", "--out", "out.csv").code == 0
    assert {"new.csv", "out.csv"} <= snapshot(here).keys()
    assert not [name for name in snapshot(here) if name.endswith(".lock")]


def test_json_lines_say_the_same(taskedge, tuned, here, data):
    lines = taskedge("predict", tuned[0], "--data", "new.csv", "--json").out.splitlines()
    as_csv = list(csv.DictReader(io.StringIO(taskedge("predict", tuned[0], "--data", "new.csv").out)))
    assert [{key: str(value) for key, value in json.loads(line).items()} for line in lines] == as_csv


def test_each_row_has_its_own_prediction(taskedge, tuned, here, data):
    """Compare with the plain model, one text at a time."""
    import torch

    from taskedge.delta.load_with_delta import load_with_delta

    base, _ = load_with_delta(tuned[0])
    base.model.eval()
    predicted = [
        json.loads(line) for line in taskedge("predict", tuned[0], "--data", "new.csv", "--json").out.splitlines()
    ]
    for text, one in zip(data, predicted, strict=True):
        with torch.no_grad():
            chances = base.model(**base.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert one["label"] == ["neg", "pos"][int(chances.argmax())]
        assert np.isclose(one["probability"], float(chances.max()), atol=2e-6)


def test_into_a_file(taskedge, tuned, here, data, monkeypatch):
    printed = taskedge("predict", tuned[0], "--data", "new.csv").out
    ended = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "labeled.csv")
    assert (ended.out, (here / "labeled.csv").read_text()) == ("", printed)
    assert ended.err.endswith("labeled.csv: 50 rows\n")
    before = snapshot(here)
    refused = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "labeled.csv")
    assert refused.code == 2
    assert "labeled.csv exists: name another file with --out, or replace it with --replace" in refused.err
    assert snapshot(here) == before

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("taskedge.io.atomic.os.fsync", full)
        ended = taskedge("predict", tuned[0], "--data", "new.csv", "--json", "--out", "labeled.csv", "--replace")
    assert ended.code == 2
    assert "labeled.csv: cannot be written (No space left on device)" in ended.err
    assert snapshot(here) == before
    with monkeypatch.context() as patch:
        patch.setattr("taskedge.cli.predict.prepare", None)  # both are refused before any work
        ended = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "no/where.csv")
        assert (ended.code, "(there is no folder no): make it" in ended.err) == (2, True)
        ended = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "new.csv", "--replace")
        assert (ended.code, "new.csv is new.csv, which this command reads" in ended.err) == (2, True)
    assert snapshot(here) == before
    arguments = ["predict", tuned[0], "--data", "new.csv", "--json", "--out", "labeled.csv", "--replace"]
    assert taskedge(*arguments).code == 0
    assert (here / "labeled.csv").read_text().startswith('{"row": 1, ')
    assert snapshot(here).keys() == {"labeled.csv", "new.csv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "call", "after", "rows"),
    [
        ((prediction_run.PredictionRun, "append"), 1, False, 0),
        ((prediction_run.PredictionRun, "append"), 2, True, 32),
        ((prediction_run, "write_atomic"), 3, False, 16),
        ((prediction_run, "move_atomic"), 1, False, 50),
        ((prediction_run, "move_atomic"), 1, True, 50),
    ],
)
def test_a_killed_prediction_resumes_to_the_same_bytes(taskedge, tuned, here, data, place, call, after, rows):
    arguments = ["predict", str(tuned[0]), "--data", "new.csv", "--batch-size", "1"]
    assert taskedge(*arguments, "--out", "whole.csv").code == 0
    out = [*arguments, "--out", "out.csv"]
    assert forked(out, killed_at(*place, after=after, call=call)).code < 0
    refused = taskedge(*out)
    assert refused.code == 2
    assert ("out.csv exists" if after and rows == 50 else "holds an interrupted prediction") in refused.err
    other = taskedge("predict", tuned[0], "--data", "new.csv", "--batch-size", "2", "--out", "out.csv", "--resume")
    assert "the interrupted prediction had --batch-size 1 (now --batch-size 2): resume it with those" in other.err
    tiny_task.table(here / "less.csv", [(text,) for text in data[:-1]], header=("text",))
    other = taskedge(*out, "--resume", "--data", "less.csv")
    assert "had other data: resume" in other.err
    ended = taskedge(*out, "--resume")
    assert ended.code == 0, ended.err
    assert f"out.csv: continues after {rows} rows" in ended.err
    assert (here / "out.csv").read_bytes() == (here / "whole.csv").read_bytes()
    assert snapshot(here).keys() == {"less.csv", "new.csv", "out.csv", "whole.csv"}


def test_nothing_to_resume(taskedge, tuned, here, data):
    ended = taskedge("predict", tuned[0], "--data", "new.csv", "--out", "out.csv", "--resume")
    assert (ended.code, "there is no interrupted prediction out.csv.partial" in ended.err) == (2, True)
    ended = taskedge("predict", tuned[0], "--data", "new.csv", "--resume")
    assert (ended.code, "name the file with --out" in ended.err) == (2, True)


def test_a_failing_row_is_named_by_its_number_in_the_file(taskedge, tuned, here, data, monkeypatch):
    from taskedge.training.classification import Classification
    from taskedge.training.guard import RowError

    original, calls = Classification.predict, iter(range(10))

    def failing(self, model, base, rows, *more):
        if next(calls) == 2:
            raise RowError([3], "no")
        return original(self, model, base, rows, *more)

    monkeypatch.setattr(Classification, "predict", failing)
    ended = taskedge("predict", tuned[0], "--data", "new.csv", "--batch-size", "1", "--out", "out.csv")
    assert (ended.code, "new.csv, row 35: no" in ended.err) == (2, True)
    resumed = taskedge("predict", tuned[0], "--data", "new.csv", "--batch-size", "1", "--out", "out.csv", "--resume")
    assert "continues after 32 rows" in resumed.err


def test_labels_with_commas_and_of_all_scripts(taskedge, task, here):
    names = ["très bien, merci", 'say "no"', "零"]
    tiny_task.table(here / "train.csv", tiny_task.rows(48, names=names))
    assert taskedge(*tuning(task, "--train", "train.csv")).code == 0
    rows = list(csv.DictReader(io.StringIO(taskedge("predict", "task.safetensors", "--data", "train.csv").out)))
    lines = taskedge("predict", "task.safetensors", "--data", "train.csv", "--json").out.splitlines()
    assert [row["label"] for row in rows] == [json.loads(line)["label"] for line in lines]
    assert {row["label"] for row in rows} <= set(names)
    assert "零" in taskedge("info", "task.safetensors").out


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "\r", 'say "no",\r\n then', "plain"])
def test_line_ends_within_a_response_end_no_row(text):
    answers = [{"row": 1, "response": text}, {"row": 2, "response": "next"}]
    rows = list(csv.DictReader(io.StringIO(predict._lines(answers, as_json=False), newline="")))
    assert rows == [{"row": "1", "response": text}, {"row": "2", "response": "next"}]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nothere.csv"], "no file nothere.csv; did you mean"),
        (["--data", "new.csv", "--text", "review"], "no column 'review'"),
        (["--data", "new.csv", "--batch-size", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes(taskedge, tuned, here, data, arguments, told):
    ended = taskedge("predict", tuned[0], *arguments)
    assert ended.code == 2
    assert told.replace("; did you mean", "") in ended.err
    assert ended.out == ""
