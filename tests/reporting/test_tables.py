"""Tables and summaries for a terminal."""

from __future__ import annotations

import pytest
from example_results import PLAN, ROUNDS

from taskedge.reporting.tables import (
    columns,
    compared_text,
    count_text,
    duration,
    percent_text,
    plan_text,
    ranges,
    simulation_text,
)


def test_a_plan_in_words() -> None:
    text = plan_text(PLAN)
    for part in ("idle: spare", "note: a note", "50.0 % less", "5.0 % more", "no plan", "gap 5.00 %", "1,000.0 kHz"):
        assert part in text


def test_rounds_in_words() -> None:
    text = simulation_text(ROUNDS)
    assert "1 to 2 of 2 devices present" in text
    assert "never" in text


def test_columns_line_up() -> None:
    assert columns([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


def test_columns_on_the_left_are_chosen() -> None:
    rows = [["a", "bb", "c"], ["ccc", "d", "ee"]]
    assert columns(rows, left=()) == "  a  bb   c\nccc   d  ee"
    assert columns(rows, left=(0, 2)) == "a    bb  c\nccc   d  ee"
    with pytest.raises(ValueError, match="zip"):
        columns([["a"], ["b", "c"]])


def test_ranges() -> None:
    assert ranges([1, 2, 3, 7]) == "1-3, 7"
    assert ranges([4]) == "4"
    assert ranges([]) == ""
    assert ranges([1, 2, 4], " ") == "1-2 4"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 89.0, 90.0, 5400.0)] == ["0 s", "89 s", "1.5 min", "1.5 h"]


def test_solvers_without_a_plan_come_last() -> None:
    lines = compared_text({"none": None, "slow": 4.0, "fast": 1.0}, 2.0).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["fast", "slow", "none"]
    assert lines[1].endswith("100.0 % more")


@pytest.mark.parametrize(("count", "text"), [(0, "0 entries"), (1, "1 entry"), (2000, "2,000 entries")])
def test_counts(count, text):
    assert count_text(count, "entry", "entries") == text
    assert count_text(1, "row") == "1 row"
    assert count_text(2, "row") == "2 rows"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.000%"), (0.00123, "0.123%"), (1 / 22e6, "0.0000045%"), (4e-6, "0.00040%"), (1, "100.000%")],
)
def test_a_share_that_is_not_0_is_not_shown_as_0(share, text):
    assert percent_text(share) == text
