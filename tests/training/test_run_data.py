"""The data of a run: read and described."""

from __future__ import annotations

import pytest
import tiny_task

from taskedge.errors import InputError
from taskedge.training.run import prepare_run
from taskedge.training.tune_config import TuneConfig


def test_a_run_says_what_its_data_are(task, tmp_path):
    said = []
    rows = [*tiny_task.rows(20), ("good film", "Pos"), ("a film", "pos ")]
    data = {"train": tiny_task.table(tmp_path / "t.csv", rows), "eval": tiny_task.table(tmp_path / "e.csv", rows[:3])}
    prepare_run(TuneConfig(model=str(task / "base"), **data), said.append)
    assert said[1:] == [
        f"{tmp_path / 't.csv'}: CSV in UTF-8, separated by ','; 22 rows; columns 'text', 'label'",
        f"{tmp_path / 'e.csv'}: CSV in UTF-8, separated by ','; 3 rows; columns 'text', 'label'",
        "22 rows, 3 classes: 'pos' 11, 'neg' 10, 'Pos' 1",
        f"{tmp_path / 't.csv'}: blanks around the label are removed in 1 of 22 rows",
        "3 held-out rows, 3 of which are in the training data too",
        f"warning: {tmp_path / 't.csv'}: 'Pos' and 'pos' are classes of their own, but differ in case, blanks or "
        "Unicode form only",
        f"warning: {tmp_path / 't.csv'}: 1 class has one row only: 'Pos'",
        "hint: 1 class is rare among 22 rows ('Pos' 1): a model may never predict what it rarely sees; "
        "--class-weights balanced gives every class the same weight in the loss",
    ]
    with pytest.raises(InputError, match=r"'Pos' and 'pos' are classes .*; .*one row only.*or leave out --strict"):
        prepare_run(TuneConfig(model=str(task / "base"), **data, strict=True), str)
    prepare_run(TuneConfig(model=str(task / "base"), train=task / "train.csv", strict=True), str)


def test_a_share_is_held_out_and_said(task):
    said = []
    config = TuneConfig(model=str(task / "base"), train=task / "train.csv", validation="25%", eval_every=5, seed=3)
    data = prepare_run(config, said.append).data
    training, held_out = data.parts
    assert (len(training), len(held_out)) == (72, 24)
    assert [data.train.labels[index] for index in held_out].count("pos") == 12
    in_rest = sum(data.train.texts[i] in {data.train.texts[j] for j in training} for i in held_out)
    assert said[-1] == (
        "--validation 25%: 24 of 96 rows are held out, the same share of every class (seed 3), and 72 train; "
        f"{in_rest} of those held out are in the rest too"
    )


def test_answers_without_classes_have_no_weights(task, tmp_path):
    ratings = tiny_task.table(tmp_path / "r.csv", tiny_task.ratings(12))
    config = TuneConfig(model=str(task / "base"), train=ratings, class_weights="balanced")
    with pytest.raises(InputError, match="the task text-regression has no class for each row: leave it out"):
        prepare_run(config, str)
