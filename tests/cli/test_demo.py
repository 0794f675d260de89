"""``taskedge demo``: flags reach the demo, and its lines are printed."""

from __future__ import annotations

import json

import pytest

from taskedge.cli import demo as cli_demo
from taskedge.demo import demo_run as demo

LINES = [demo.Line("head only", 0.655, 0, 0.0, 770, 12.0, 500_000_000, 0)]


def test_the_table(taskedge, monkeypatch, tmp_path):
    asked = {}

    def run(folder, **options):
        asked.update(options, folder=folder)
        options["log"]("fetching")
        return demo.DemoResult(LINES, folder / "movie-reviews.safetensors", folder / "run", {})

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(cli_demo, "write_page", lambda done: done.delta.with_suffix(".html"))
    ended = taskedge("demo", "--folder", tmp_path, "--train-rows", "200", "--epochs", "0.5")
    assert ended.code == 0
    assert (asked["folder"], asked["train_rows"], asked["epochs"]) == (tmp_path, 200, 0.5)
    assert "movie reviews, 200 rows to train on and 1,000 held out" in ended.out
    assert demo.table(LINES) in ended.out
    assert f"worst mistakes: {tmp_path / 'movie-reviews.html'}" in ended.out
    assert ended.err == "fetching\n"
    assert json.loads(taskedge("demo", "--json").out)[0]["accuracy"] == 0.655


@pytest.mark.parametrize("wrong", [["--train-rows", "1"], ["--epochs", "0"], ["--rows", "5"]])
def test_mistakes(taskedge, wrong):
    assert taskedge("demo", *wrong).code == 2
