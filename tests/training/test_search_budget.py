"""Budgets of a search: times are read, and a run starts only if it fits."""

from __future__ import annotations

import pytest

from taskedge.errors import InputError
from taskedge.training.search_budget import SearchBudget, parse_seconds


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), (" 10 M ", 600), ("1.5h", 5400), (".5m", 30)])
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-1s", "10d", "fast", "1e3"])
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="write 90s, 10m or"):
        parse_seconds(text)


def test_steps_are_counted_with_those_of_runs_that_diverged():
    budget = SearchBudget(steps=20)
    done = [{"steps": 6, "spent_steps": 6}, {"steps": 0, "spent_steps": 6}]
    assert budget.fits(done, 0.0, 8)
    assert not budget.fits(done, 0.0, 9)
    budget.check(20, 2)
    with pytest.raises(InputError, match="--step-budget 20: one pair of rates takes 21 steps in 2 rungs"):
        budget.check(21, 2)


def test_seconds_follow_from_those_a_step_before():
    budget = SearchBudget(seconds=10)
    assert budget.fits([], 0.0, 10**9)  # nothing is known yet
    done = [{"steps": 4, "spent_steps": 4, "seconds": 4.0}]
    assert budget.fits(done, 0.0, 6)
    assert not budget.fits(done, 0.0, 7)
    assert not budget.fits(done, 1.0, 6)  # seconds of an interrupted run count
    assert SearchBudget().fits(done, 1e9, 10**9)
    assert str(SearchBudget(600, 20)) == "600 s and 20 steps"
