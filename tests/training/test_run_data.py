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
    ]
    with pytest.raises(InputError, match=r"'Pos' and 'pos' are classes .*; .*one row only.*or leave out --strict"):
        prepare_run(TuneConfig(model=str(task / "base"), **data, strict=True), str)
    prepare_run(TuneConfig(model=str(task / "base"), train=task / "train.csv", strict=True), str)
