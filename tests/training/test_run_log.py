"""The log of a run: its curves and figures, and hints about classes that are never predicted."""

from __future__ import annotations

import json

import pytest
import tiny_task
from tiny_task import tune_config

from taskedge.errors import InputError
from taskedge.training.held_out import HELD_OUT_LOSS
from taskedge.training.run_log import RUN_LOG
from taskedge.training.tune import tune


def test_it_holds_the_curves_and_the_result(task, tmp_path):
    watched = {"validation": "25%", "eval_every": 3, "log": tmp_path / "logs" / "a"}
    result = tune(tune_config(task, tmp_path / "o", **watched), progress=False, log=str)
    log = json.loads((tmp_path / "logs" / "a" / RUN_LOG).read_text())
    assert [entry["step"] for entry in log["log"] if HELD_OUT_LOSS in entry] == [3, 6, 9]
    assert [entry["step"] for entry in log["log"] if "loss" in entry] == [9]
    assert log["result"]["train_loss"] == result.train_loss
    assert (log["rows"], log["settings"]["validation"]) == (72, "25%")


def test_a_folder_that_cannot_be_made_is_said_and_the_file_is_complete(task, tmp_path):
    (tmp_path / "file").write_text("")
    settings = tune_config(task, tmp_path / "o", log=tmp_path / "file" / "logs")
    with pytest.raises(InputError, match=r"the log cannot be written .*o is complete: name another --log"):
        tune(settings, progress=False, log=str)
    assert (tmp_path / "o").exists()


def test_a_class_that_is_never_predicted_is_named(task, tmp_path):
    rows = tiny_task.rows(60)
    rare = [*(row for row in rows if row[1] == "neg"), *[row for row in rows if row[1] == "pos"][:2]]
    train = tiny_task.table(tmp_path / "t.csv", rare)
    lines = []
    settings = tune_config(task, tmp_path / "o", train=train, eval=task / "eval.csv", lr=1e-5, head_lr=1e-2)
    tune(settings, progress=False, log=lines.append)
    assert any(line.startswith("hint: 1 class is rare among 32 rows ('pos' 2)") for line in lines)
    assert any(line.startswith("hint: 1 class is never predicted in 20 rows of 40 ('pos' 20)") for line in lines)
    lines.clear()
    tune(tune_config(task, tmp_path / "w", train=train, class_weights="balanced"), progress=False, log=lines.append)
    assert not [line for line in lines if "rare" in line]
