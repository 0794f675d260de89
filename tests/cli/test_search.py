"""``taskedge search``: rates that cannot be read."""

from __future__ import annotations

import json

import pytest
import tiny_task

from taskedge.training import rate_search


@pytest.mark.parametrize("rates", ["", "fast", "0.1,0.1", "0,1", "-1"])
def test_rates_that_are_none(taskedge, task, here, rates):
    ended = taskedge("search", "--model", "m", "--train", "t.csv", "--validation", "10%", "--rates", rates)
    assert ended.code == 2
    assert "write different rates above 0, separated by commas" in ended.err


def test_the_rates_of_tune_are_no_options(taskedge):
    text = taskedge("search", "--help").out
    assert "--rates" in text
    assert " --lr " not in text


def test_a_budget_that_is_none(taskedge, here):
    ended = taskedge("search", "--model", "m", "--train", "t.csv", "--validation", "10%", "--time-budget", "soon")
    assert ended.code == 2
    assert "--time-budget: 'soon' is no time above 0: write 90s, 10m or 1.5h" in ended.err
    assert taskedge("search", "--model", "m", "--train", "t.csv", "--step-budget", "0").code == 2


def test_an_interrupted_search_says_how_to_go_on(taskedge, task, here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(rate_search, "tune", interrupted)
    options = [*tiny_task.tuning(task)[1:], "--validation", "25%", "--step-budget", "90"]
    rate = options.index("--lr")
    ended = taskedge("search", *options[:rate], *options[rate + 2 :])
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == "taskedge: interrupted: continue with --resume"
    assert json.loads((here / "task.safetensors.search" / "search.json").read_text())["lost_seconds"] >= 0
