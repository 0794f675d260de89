"""``taskedge eval``: repeats the measures of ``tune`` on a freshly loaded base."""

from __future__ import annotations

import json

import pytest
import tiny_task
from tiny_task import snapshot


def test_it_equals_what_tune_said(taskedge, tuned, task, here):
    out, said = tuned
    measured = json.loads(taskedge("eval", out, "--data", task / "eval.csv", "--json", "--batch-size", "8").out)
    by_class = measured.pop("by_class")
    assert measured == said["quality"]
    assert by_class["labels"] == ["neg", "pos"]
    right = sum(by_class["confusion"][index][index] for index in (0, 1))
    assert right / measured["rows"] == measured["accuracy"]
    assert sum(one["f1"] for one in by_class["classes"]) / 2 == pytest.approx(measured["macro_f1"])
    shown = taskedge("eval", out, "--data", task / "eval.csv").out
    assert f"accuracy {said['quality']['accuracy']:.4f}, macro F1 {said['quality']['macro_f1']:.4f}" in shown
    assert "(40 rows, 2 classes)\n\nclass  rows  predicted  precision  recall     F1\nneg      20" in shown
    assert "right \\ predicted  neg  pos" in shown
    assert snapshot(here) == {}


def test_other_columns(taskedge, tuned, task, here):
    rows = tiny_task.rows(40, seed=1)
    tiny_task.table(here / "other.csv", [(label, text) for text, label in rows], header=("stars", "review"))
    ended = taskedge("eval", tuned[0], "--data", "other.csv", "--text", "review", "--label", "stars", "--json")
    assert json.loads(ended.out)["accuracy"] == tuned[1]["quality"]["accuracy"]


def test_one_class_may_be_all_there_is(taskedge, tuned, here):
    tiny_task.table(here / "one.csv", [row for row in tiny_task.rows(20) if row[1] == "pos"])
    assert json.loads(taskedge("eval", tuned[0], "--data", "one.csv", "--json").out)["rows"] == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["DELTA", "--data", "other.csv"], "no column 'text' (columns: 'stars', 'review')"),
        (["DELTA", "--data", "other.csv", "--text", "review"], "no column 'label' (columns: 'stars', 'review')"),
        (["DELTA", "--data", "meh.csv"], "meh.csv, row 2: the label 'meh' does not occur in training"),
        (["DELTA", "--data", "nothere.csv"], "no file nothere.csv"),
        (["nothere", "--data", "meh.csv"], "nothere: cannot be read (No such file or directory)"),
        (["meh.csv", "--data", "meh.csv"], "meh.csv: the delta is damaged (not a whole safetensors file"),
        (["TASK/base/model.safetensors", "--data", "meh.csv"], "not a delta: it has no metadata 'taskedge'"),
        (["DELTA", "--data", "TASK/eval.csv", "--model", "TASK/other"], "wrong base: 1"),
        (["DELTA", "--data", "TASK/eval.csv", "--model", "TASK/gpt2", "--force"], "wrong base: the model (GPT2"),
        (["DELTA", "--data", "TASK/eval.csv", "--model", "./no"], "./no: no such folder"),
        (["DELTA"], "Missing option '--data'"),
        ([], "Missing argument 'DELTA'"),
    ],
)
def test_mistakes(taskedge, tuned, task, here, arguments, told):
    tiny_task.table(here / "other.csv", [("neg", "bad film")], header=("stars", "review"))
    tiny_task.table(here / "meh.csv", [("good", "pos"), ("long", "meh")])
    before = snapshot(here)
    ended = taskedge("eval", *(a.replace("DELTA", str(tuned[0])).replace("TASK", str(task)) for a in arguments))
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert snapshot(here) == before


def test_a_wrong_base_by_force(taskedge, tuned, task):
    ended = taskedge("eval", tuned[0], "--data", task / "eval.csv", "--model", task / "other", "--force", "--json")
    assert ended.code == 0
    measures = json.loads(ended.out)
    assert measures["rows"] == 40
    assert measures["forced"] == "11 of 11 linears hold other values than the delta's base"
    assert "forced: 11 of 11 linears hold other values than the delta's base" in ended.err
