"""``taskedge search``: rates that cannot be read."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("rates", ["", "fast", "0.1,0.1", "0,1", "-1"])
def test_rates_that_are_none(taskedge, task, here, rates):
    ended = taskedge("search", "--model", "m", "--train", "t.csv", "--validation", "10%", "--rates", rates)
    assert ended.code == 2
    assert "write different rates above 0, separated by commas" in ended.err


def test_the_rates_of_tune_are_no_options(taskedge):
    text = taskedge("search", "--help").out
    assert "--rates" in text
    assert " --lr " not in text
