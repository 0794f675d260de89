"""Numbers of a device are within bounds or not used, whatever their type and length."""

import math

import pytest

from taskedge.cooperation.protocol.bounds import (
    MAX_REASON_CHARACTERS,
    bounded_count,
    bounded_number,
    is_finite_tree,
    short_reason,
    short_text,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400), -0.1, 1.1, True, "1", None, [1]])
def test_other_numbers_are_none(value):
    assert bounded_number(value, 0.0, 1.0) is None
    assert bounded_count(value, 0, 1) is None


def test_bounds_belong_to_the_range():
    assert [bounded_number(value, 0.0, 1.0) for value in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    assert [bounded_count(value, 1, 3) for value in (1, 3, 4, 2.0)] == [1, 3, None, None]


def test_every_number_inside_counts():
    assert is_finite_tree({"a": [0, 1e-3, {"b": "x", "c": None}], "d": True}, 1e-6, 1e6)
    for bad in (1e-7, 1e7, math.nan, math.inf, 10**400, -1e7):
        assert not is_finite_tree({"a": [1.0, {"b": bad}]}, 1e-6, 1e6)


def test_texts_of_a_device_are_cut():
    assert short_text("abc") == "'abc'"
    assert len(short_text("x" * 10**6)) == 60
    assert short_text(10**5000) == "<int: ValueError>"  # Python prints no integer of that length
    assert len(short_reason("x" * 10**6)) == MAX_REASON_CHARACTERS
    assert short_reason("short") == "short"


def test_a_reason_of_a_device_cannot_steer_a_terminal():
    assert short_reason("größer als ε\x1b[2J\r\nok\ud800") == "größer als ε\\x1b[2J\\r\\nok\\ud800"
    assert len(short_reason("\x00" * 10_000)) <= MAX_REASON_CHARACTERS
