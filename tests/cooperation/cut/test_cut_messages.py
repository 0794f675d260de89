"""Coded matrices in messages, and the checks of both ends."""

from __future__ import annotations

import pytest
import torch

from taskedge.cooperation.cut.cut_messages import (
    CutFailed,
    CutRefused,
    as_bytes,
    check_message,
    from_bytes,
    limits_of,
    whole_number,
)
from taskedge.cooperation.protocol.message import Message

IDENTITY = {"session": "s", "pass": 3}


def message(tensor: torch.Tensor) -> Message:
    return Message("products", dict(IDENTITY), {"matrix": tensor})


def test_a_matrix_comes_back_bit_for_bit():
    matrix = torch.randn(5, 3)
    sent = Message.unpack(message(as_bytes(matrix, "fp32")).pack(), limits_of(60))
    assert torch.equal(from_bytes(sent, "matrix", (5, 3), "fp32"), matrix)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(59, dtype=torch.uint8),
        torch.zeros(15),
        torch.zeros(60, 1, dtype=torch.uint8),
        torch.full((15,), float("nan")).view(torch.uint8),
    ],
    ids=["short", "floats", "matrix", "nan"],
)
def test_what_is_no_such_matrix_is_refused(tensor):
    with pytest.raises(CutRefused, match="'matrix'"):
        from_bytes(message(tensor), "matrix", (5, 3), "fp32")


def test_a_missing_matrix_is_refused():
    with pytest.raises(CutRefused, match="without 'columns'"):
        from_bytes(message(torch.zeros(1)), "columns", (1, 1), "fp32")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Message("gradient", IDENTITY), "kind 'gradient'"),
        (Message("products", {"session": "t", "pass": 3}), "session 't', not 's'"),
        (Message("products", {"session": "s", "pass": 2}), "pass 2, not 3"),
        (Message("products", {"session": "s", "pass": True}), "pass True"),
        (Message("products", {"session": "s"}), "pass None"),
        (Message("products", IDENTITY, {"matrix": torch.zeros(1), "more": torch.zeros(1)}), "'more'"),
    ],
)
def test_a_message_about_something_else_is_refused(changed, words):
    with pytest.raises(CutRefused, match=words):
        check_message(changed, ("products",), IDENTITY, ("matrix",))


def test_an_end_that_cannot_go_on_broke_no_rule():
    with pytest.raises(CutFailed, match="no rows"):
        check_message(Message("error", {"why": "no rows"}), ("products",), IDENTITY)


@pytest.mark.parametrize("value", [None, True, 1.0, "1", 0, 11])
def test_numbers_have_bounds(value):
    with pytest.raises(CutRefused, match="count"):
        whole_number({"count": value}, "count", 1, 10)
