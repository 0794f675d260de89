"""Codes of weights: the nearest value of the format, and exact round trips of all codes."""

from __future__ import annotations

import pytest
import torch

from taskedge.errors import InputError
from taskedge.placement.number_formats import AdaptiveFloat, FixedPoint, format_for, parse_format

FORMATS = [
    FixedPoint(2, 6),
    FixedPoint(1, 3),
    AdaptiveFloat(8, 3, -9),
    AdaptiveFloat(8, 4, -14),
    AdaptiveFloat(6, 2, -3),
]


@pytest.mark.parametrize("number", FORMATS, ids=str)
def test_every_code_comes_back(number):
    codes = torch.arange(2**number.bits)
    values = number.decode(codes)
    assert torch.equal(number.decode(number.encode(values)), values)
    same = number.encode(values) == codes
    assert int((~same).sum()) == (0 if isinstance(number, FixedPoint) else 1)  # a negative zero has the code of zero


@pytest.mark.parametrize("number", FORMATS, ids=str)
def test_a_value_takes_the_nearest_of_all_codes(number):
    every = number.decode(torch.arange(2**number.bits)).double()
    largest = float(every.abs().max())
    values = torch.linspace(-1.1 * largest, 1.1 * largest, 4001)
    values = torch.cat([values, values / 50, values / 1000])
    taken = number.decode(number.encode(values)).double()
    nearest = (values.double()[:, None] - every[None]).abs().min(1).values
    assert torch.allclose((values.double() - taken).abs(), nearest, rtol=0, atol=1e-12)


def test_an_adaptive_float_is_fitted_to_the_largest_value():
    values = torch.tensor([0.01, -0.3, 0.2])
    number = format_for("adaptive:8.3", values)
    assert isinstance(number, AdaptiveFloat)
    assert number.bias == -2 - 7  # 0.3 lies in [2**-2, 2**-1)
    assert torch.allclose(number.decode(number.encode(values)), values, rtol=2.0**-5)
    assert format_for("adaptive:8.3", torch.zeros(3)).decode(torch.zeros(3, dtype=torch.long)).tolist() == [0.0] * 3


def test_fixed_point_clips_and_rounds():
    number = format_for("fixed:2.6", torch.zeros(1))
    values = number.decode(number.encode(torch.tensor([5.0, -5.0, 1 / 64, 0.4 / 64, -0.6 / 64])))
    assert values.tolist() == [127 / 64, -2.0, 1 / 64, 0.0, -1 / 64]


@pytest.mark.parametrize(
    "name", ["fixed", "fixed:2", "float:8.3", "adaptive:3.2", "fixed:0.4", "fixed:9.8", "adaptive:8.6"]
)
def test_a_format_that_does_not_exist(name):
    with pytest.raises(InputError, match="number format"):
        parse_format(name)
