"""``taskedge cut train``: what it needs before it reaches the cloud."""

from __future__ import annotations

import cut_runs


def test_a_missing_bundle_is_named(taskedge, tmp_path):
    ended = taskedge("cut", "train", "--bundle", tmp_path / "none", "--train", tmp_path / "a.csv")
    assert ended.code == 2
    assert "none" in ended.err


def test_it_takes_no_model(taskedge, tmp_path):
    files = cut_runs.files(tmp_path)
    ended = taskedge("cut", "train", "--bundle", tmp_path, "--train", files.folder / "train.csv", "--model", files.base)
    assert ended.code == 2
    assert "--model" in ended.err
