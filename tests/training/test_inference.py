"""A delta is evaluated and used for prediction on the base that it names, with the columns of its training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_task
import torch

from taskedge.errors import InputError
from taskedge.training.config import load_config
from taskedge.training.guard import RowError
from taskedge.training.held_out_rows import PartRows
from taskedge.training.inference import Inference, prepare_inference
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


@pytest.fixture(scope="module")
def of_sets(task, tmp_path_factory):
    """The result of a short run on columns of 0 and 1."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [(text, int(label == "pos"), int("plot" in text)) for text, label in tiny_task.rows(32)]
    tiny_task.table(folder / "train.csv", rows, ("text", "nice", "plot"))
    lists = [(text, ";".join(name for name, mark in (("nice", a), ("plot", b)) if mark)) for text, a, b in rows]
    tiny_task.table(folder / "lists.csv", lists, ("text", "tags"))
    flags = {"model": str(task / "base"), "train": folder / "train.csv", "eval": folder / "train.csv"}
    flags |= {"label": ["nice", "plot"], "budget": "2%", "batch_size": 8, "epochs": 1, "threads": 1}
    flags |= {"validation": "25%", "eval_every": 2, "class_weights": "balanced"}
    return tune(load_config(TuneConfig, {**flags, "out": folder / "o"}), progress=False, log=str)


def test_sets_are_measured_from_columns_and_from_a_list(of_sets):
    folder = of_sets.out.parent
    inference = prepare_inference(of_sets.out, folder / "train.csv", answers=True, log=str)
    measured, prediction = inference.examine(8)
    assert measured == of_sets.quality
    assert [one["label"] for one in inference.figures(prediction)["classes"]] == ["nice", "plot"]
    listed = Columns(label="tags", label_separator=";")
    assert prepare_inference(of_sets.out, folder / "lists.csv", listed, answers=True, log=str).evaluate(8) == measured
    with pytest.raises(InputError, match="the columns 'nice', 'text' are not the labels of the delta"):
        prepare_inference(of_sets.out, folder / "train.csv", Columns(label="nice,text"), answers=True, log=str)


def test_an_export_of_sets_runs_in_onnxruntime(of_sets, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    import runpy
    from pathlib import Path

    from taskedge.cli.main import main

    assert main(["export", str(of_sets.out), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"))
    texts = [text for text, _ in tiny_task.rows(6, seed=5)]
    data = tiny_task.table(tmp_path / "new.csv", [(text, "") for text in texts])
    expected = prepare_inference(of_sets.out, data, answers=False, log=str).predict()
    found = example["classify"](*example["load"](tmp_path / "onnx"), texts)
    assert [names for names, _ in found] == [",".join(row["labels"]) for row in expected]
    for (_, chance), row in zip(found, expected, strict=True):
        assert chance == pytest.approx(max(row["probability_nice"], row["probability_plot"]), abs=1e-4)


def test_an_export_of_sets_to_llama_cpp_is_refused(of_sets, tmp_path, capsys):
    from taskedge.cli.main import main

    assert main(["export", str(of_sets.out), "--to", "gguf-lora", "--out", str(tmp_path / "x.gguf")]) == 2
    assert "export with --to merged" in capsys.readouterr().err


def test_rows_that_became_several_keep_their_numbers():
    """A dialogue is one row of the file and many of the model."""

    class Failing:
        def predict(self, model, base, rows, batch_size, on_progress):
            raise RowError([rows.numbers[0]], "fails")

    work = Inference(
        Failing(), SimpleNamespace(model=torch.nn.Linear(1, 1)), PartRows([{}] * 3, [7, 7, 8]), Path("d.jsonl")
    )
    with pytest.raises(InputError, match=r"d\.jsonl, row 8: fails"):
        list(work.iter_answers(1, start=2))
