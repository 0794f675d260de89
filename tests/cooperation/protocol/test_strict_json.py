"""Only JSON by the standard is read, and only JSON by the standard is written."""

import json

import pytest

from taskedge.cooperation.protocol.strict_json import MAX_INTEGER, MAX_NESTING, finite_json, parse_json


@pytest.mark.parametrize("value", [{"a": [1, -2.5, "x", None, True]}, [], {}, 3, "text", MAX_INTEGER - 1, 1e308])
def test_json_is_read_as_it_was_written(value):
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b'{"a": [{"b": 1, "b": 1}]}', "a key twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "beyond the largest float"),
        (str(MAX_INTEGER).encode(), "an integer of 19 digits"),
        (b"9" * 10**5, "an integer of 100000 digits"),
        (b"[" * (MAX_NESTING + 2) + b"]" * (MAX_NESTING + 2), "inside one another"),
        (b"[" * 10**5, "inside one another"),
        (b'{"a":' * 10**5, "inside one another"),
        (b"{", "Expecting"),
        (b"\xff", "utf-8"),
        ('{"a": 1}'.encode("utf-16-le"), "Expecting"),
        ('{"a": 1}'.encode("utf-32"), "utf-8"),
    ],
)
def test_anything_else_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_nesting_up_to_the_limit_is_read():
    parse_json(b"[" * MAX_NESTING + b"]" * MAX_NESTING)


def test_what_json_does_not_have_becomes_null():
    value = {"a": [float("inf"), float("nan"), 1.5], "b": (float("-inf"), "x", None, 3)}
    assert finite_json(value) == {"a": [None, None, 1.5], "b": [None, "x", None, 3]}
