"""A prediction that is cut short anywhere continues to the same bytes, or says why it cannot."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tiny_task import snapshot
from torch import nn

from taskedge.errors import InputError
from taskedge.io.atomic import WriteError
from taskedge.training.prediction_run import (
    PredictionRun,
    check_prediction_output,
    model_digest,
    partial_folder,
)

IDENTITY = {"delta": "d", "data": "e", "base": "b", "batch-size": 16, "json": None, "head": None}


@pytest.fixture
def begun(tmp_path):
    """The output of a prediction with 2 of 3 blocks."""
    out = tmp_path / "out.csv"
    run = PredictionRun(out)
    run.start(IDENTITY)
    run.append("one\n", 1)
    run.append("two\nzwö\n", 2)
    return out


def test_what_is_written_gets_its_name_at_the_end(begun, tmp_path):
    assert not begun.exists()
    resumed = PredictionRun(begun)
    resumed.resume(IDENTITY)
    assert resumed.num_rows == 3
    resumed.append("four\n", 1)
    resumed.finish()
    assert snapshot(tmp_path) == {"out.csv": "one\ntwo\nzwö\nfour\n".encode()}
    mask = os.umask(0o022)
    os.umask(mask)
    assert begun.stat().st_mode & 0o777 == 0o666 & ~mask


def test_half_a_block_is_cut_off(begun):
    with (partial_folder(begun) / "rows").open("ab") as file:
        file.write(b"fo")
    resumed = PredictionRun(begun)
    resumed.resume(IDENTITY)
    resumed.append("four\n", 1)
    resumed.finish()
    assert begun.read_text() == "one\ntwo\nzwö\nfour\n"


def test_a_kill_after_the_rename(begun, tmp_path):
    (partial_folder(begun) / "rows").rename(begun)
    resumed = PredictionRun(begun)
    resumed.resume(IDENTITY)
    assert resumed.num_rows == 3
    resumed.finish()
    assert snapshot(tmp_path) == {"out.csv": "one\ntwo\nzwö\n".encode()}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"delta": "x"}, "had another delta: resume it with those, or start anew with --replace"),
        ({"data": "x", "base": "y"}, "had other data, another base"),
        ({"data": "x", "tokens": "y"}, "had other data:"),
        ({"tokens": "y"}, "had another tokenizer:"),
        ({"batch-size": 8}, r"had --batch-size 16 \(now --batch-size 8\)"),
        ({"json": True, "head": "h"}, r"had no --json \(now --json\), no --head \(now --head h\)"),
    ],
)
def test_other_things_are_named(begun, changes, told):
    with pytest.raises(InputError, match=told):
        PredictionRun(begun).resume(IDENTITY | changes)


def test_damaged_files(begun):
    folder = partial_folder(begun)
    (folder / "rows").write_text("One\ntwo\n")
    with pytest.raises(InputError, match="rows was changed since it was written"):
        PredictionRun(begun).resume(IDENTITY)
    (folder / "rows").unlink()
    with pytest.raises(InputError, match="rows cannot be read"):
        PredictionRun(begun).resume(IDENTITY)
    head = {"format": "taskedge-prediction/1", "rows": 1}
    no_digest = head | {"identity": {}, "bytes": 1}
    for content in ("", "[]", "{}", json.dumps(head | {"identity": 1}), json.dumps(no_digest)):
        (folder / "run.json").write_text(content)
        with pytest.raises(InputError, match=r"run\.json: the file is damaged"):
            PredictionRun(begun).resume(IDENTITY)
    (folder / "run.json").write_text(json.dumps({"format": "taskedge-prediction/9"}))
    with pytest.raises(InputError, match="this version reads taskedge-prediction/1"):
        PredictionRun(begun).resume(IDENTITY)


def test_what_may_be_written(begun, tmp_path):
    check_prediction_output(begun, resume=True, replace=False)
    check_prediction_output(begun, resume=False, replace=True)
    with pytest.raises(InputError, match=r"holds an interrupted prediction of 3 rows: continue it with --resume"):
        check_prediction_output(begun, resume=False, replace=False)
    other = tmp_path / "other.csv"
    with pytest.raises(InputError, match="there is no interrupted prediction"):
        check_prediction_output(other, resume=True, replace=False)
    other.touch()
    with pytest.raises(InputError, match=r"other\.csv exists"):
        check_prediction_output(other, resume=False, replace=False)
    with pytest.raises(InputError, match="is a folder: name a file"):
        check_prediction_output(tmp_path, resume=False, replace=True)
    partial_folder(other).mkdir()
    (partial_folder(other) / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"holds thesis\.txt, which is of no prediction"):
        check_prediction_output(other, resume=False, replace=True)


def test_a_full_disk_keeps_what_is_written(begun, monkeypatch):
    resumed = PredictionRun(begun)
    resumed.resume(IDENTITY)

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("taskedge.io.atomic.os.fsync", full)
        with pytest.raises(WriteError, match=r"No space left.*continue after 3 rows with --resume"):
            resumed.append("four\n", 1)
    again = PredictionRun(begun)
    again.resume(IDENTITY)
    assert again.num_rows == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_counts(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)).to(dtype)
    before = model_digest(model)
    assert before == model_digest(model)
    for values in [*model.parameters(), *model.buffers()]:
        one = values.data.reshape(-1)
        kept = one[0].clone()
        one[0] += 1
        assert model_digest(model) != before
        one[0] = kept
    assert model_digest(model) == before
