"""A delta is evaluated and used for prediction on the base that it names, with the columns of its training."""

from __future__ import annotations

import pytest
import tiny_task

from taskedge.errors import InputError
from taskedge.training.config import load_config
from taskedge.training.inference import prepare_inference
from taskedge.training.tasks import Columns
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
    """The result of a short run whose columns do not have the default names."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_task.table(folder / "train.csv", tiny_task.rows(32), ("review", "stars"))
    tiny_task.table(folder / "eval.csv", tiny_task.rows(12, seed=1), ("review", "stars"))
    flags = {"model": str(task / "base"), "train": folder / "train.csv", "eval": folder / "eval.csv"}
    flags |= {"text": ["review"], "label": "stars", "budget": "2%", "batch_size": 8, "epochs": 1, "threads": 1}
    return tune(load_config(TuneConfig, {**flags, "out": folder / "o"}), progress=False, log=str)


def test_evaluation_repeats_what_was_measured(trained):
    inference = prepare_inference(trained.out, trained.out.parent / "eval.csv", answers=True, log=str)
    done = []
    assert inference.evaluate(8, done.append) == trained.quality
    assert sum(done) == len(inference.rows) == 12


def test_cut_texts_are_counted(trained, tmp_path):
    said = []
    data = tiny_task.table(tmp_path / "new.csv", [("film " * 200, "pos"), ("bad film", "neg")], ("review", "stars"))
    for answers in (True, False):
        prepare_inference(trained.out, data, answers=answers, log=said.append)
    lines = [line for line in said if "are cut" in line]
    cut = "1 of 2 rows have more than 64 tokens and are cut at their end"
    assert lines == [f"{cut}: 138 tokens are lost (longest row: 202 tokens)"] * 2


def test_predictions_are_numbered(trained, tmp_path):
    data = tiny_task.table(tmp_path / "new.csv", [("good film",), ("bad film",)], ("title",))
    inference = prepare_inference(trained.out, data, Columns(text=("title",)), answers=False, log=str)
    answers = inference.predict()
    assert [answer["row"] for answer in answers] == [1, 2]
    assert {answer["label"] for answer in answers} <= {"neg", "pos"}


def test_blocks_of_predictions_can_begin_later(trained, tmp_path):
    data = tiny_task.table(tmp_path / "new.csv", [(text,) for text, _ in tiny_task.rows(40, 2)], ("review",))
    inference = prepare_inference(trained.out, data, answers=False, log=str)
    blocks, done = list(inference.iter_answers(1)), []
    assert [len(block) for block in blocks] == [16, 16, 8]
    assert list(inference.iter_answers(1, done.append, start=16)) == blocks[1:]
    assert (sum(done), inference.predict(1)) == (24, [*blocks[0], *blocks[1], *blocks[2]])


def test_data_that_does_not_fit_the_delta(trained, tmp_path):
    data = trained.out.parent / "eval.csv"
    with pytest.raises(InputError, match=r"is for text-classification, which reads --text and --label, not --prompt"):
        prepare_inference(trained.out, data, Columns(prompt="review"), answers=False, log=str)
    with pytest.raises(InputError, match="is a folder, but the delta is for text-classification: name a file"):
        prepare_inference(trained.out, tmp_path, answers=False, log=str)
    other = tiny_task.table(tmp_path / "other.csv", [("good", "meh"), ("bad", "neg")], ("review", "stars"))
    with pytest.raises(InputError, match="the label 'meh' does not occur in training"):
        prepare_inference(trained.out, other, answers=True, log=str)


def test_another_weight_storage_gives_nearly_the_same(trained):
    data = trained.out.parent / "eval.csv"
    measured = [
        prepare_inference(trained.out, data, answers=True, weight_storage=storage, log=str).evaluate()["loss"]
        for storage in ("resident", "mmap", "int8")
    ]
    assert measured[0] == measured[1]
    assert measured[2] == pytest.approx(measured[0], rel=0.05)
