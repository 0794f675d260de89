"""The folder of a run: what may be resumed, and what is refused before any work."""

from __future__ import annotations

import shutil

import pytest
import tiny_task
from killed_runs import OFTEN, killed_at
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.errors import InputError
from taskedge.training import checkpoint, tune


def test_resume_sees_changed_data(task, tmp_path):
    train = shutil.copy(task / "train.csv", tmp_path / "train.csv")
    arguments = tuning(task, "--train", train, "--out", tmp_path / "o")
    forked(arguments, killed_at(checkpoint, "write"))
    tiny_task.table(train, tiny_task.rows(96, seed=5))
    ended = forked([*arguments, "--resume"])
    assert ended.code == 2
    assert "other training data: resume it with those" in ended.err


def test_resume_with_nothing_to_resume(task, tmp_path):
    """A typo in --out does not start anew: the message names the runs that can be resumed."""
    forked(tuning(task, "--out", tmp_path / "right", *OFTEN), killed_at(checkpoint, "write", after=True))
    (tmp_path / "other.run").mkdir()
    before = snapshot(tmp_path)
    ended = forked(tuning(task, "--out", tmp_path / "wrong", "--resume"))
    assert ended.code == 2
    assert f"no interrupted run {tmp_path / 'wrong.run'}" in ended.err
    assert f"interrupted runs in {tmp_path}: right.run)" in ended.err
    assert snapshot(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"interrupted runs in \S+: none"):
        tune.tune(tune_config(task, tmp_path / "empty" / "o"), resume=True, progress=False, log=str)


def test_a_folder_that_cannot_be_made(task, tmp_path):
    (tmp_path / "o.run").write_text("a file in its place")
    with pytest.raises(InputError, match="cannot be written"):
        tune.tune(tune_config(task, tmp_path / "o"), progress=False, log=str)
