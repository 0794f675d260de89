"""``taskedge cut local``: a whole run, its plan, and its faults."""

from __future__ import annotations

import json

import cut_runs
import pytest

from taskedge.delta.file import load


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return cut_runs.files(tmp_path_factory.mktemp("cut"))


def flags(files, *more):
    fixed = ["--model", files.base, "--train", files.folder / "train.csv", "--budget", "3%", "--max-columns", 4]
    return ["cut", "local", *fixed, "--epochs", 1, "--batch-size", 8, "--calibration", 2, "--threads", 1, *more]


def test_a_run_writes_a_delta_and_counts_the_bytes(taskedge, files, tmp_path):
    out = tmp_path / "task.safetensors"
    ended = taskedge(*flags(files, "--out", out, "--eval", files.folder / "eval.csv"))
    assert ended.code == 0, ended.err
    assert load(out).provenance.base == str(files.base)
    assert "bytes up" in ended.out
    assert "5 passes through the cloud" not in ended.out  # the evaluation passes as well
    assert "accuracy" in ended.out
    again = taskedge(*flags(files, "--out", out))
    assert again.code == 2
    assert "exists" in again.err


def test_json_has_the_traffic_by_kind(taskedge, files, tmp_path):
    ended = taskedge(*flags(files, "--out", tmp_path / "task.safetensors", "--json", "--coding", "int8"))
    values = json.loads(ended.out)
    assert values["steps"] == 5
    assert values["traffic"]["up_by_kind"]["products"] > 0


def test_a_plan_trains_nothing_and_states_the_closed_form(taskedge, files, tmp_path):
    out = tmp_path / "task.safetensors"
    ended = taskedge(*flags(files, "--out", out, "--plan", "--json", "--active-share", "1/4"))
    assert ended.code == 0, ended.err
    assert not list(tmp_path.iterdir())
    plans = json.loads(ended.out)["plans"]
    whole, share = plans["all modules"], plans["3 of 12 modules"]
    assert whole["round_trips"] == 2 * 8 + 2
    assert share["down_bytes"] < whole["down_bytes"]
    assert len(whole["seconds_by_link"]) == 2
    text = taskedge(*flags(files, "--out", out, "--plan", "--bandwidth", 5)).out
    assert "5 Mbit/s, 20 ms" in text


def test_a_setting_that_the_cut_does_not_have_is_refused(taskedge, files, tmp_path):
    ended = taskedge(*flags(files, "--out", tmp_path / "x.safetensors", "--form", "taps"))
    assert ended.code == 2
