"""Bytes by kind add up, and lines go through what was measured."""

from __future__ import annotations

import itertools
import json

import pytest
from example_costs import MEMORY, cost
from hypothesis import given
from hypothesis import strategies as st

from taskedge.training.memory.step_cost import MARGIN, MARGIN_BYTES, Line, longest_of


def test_kinds_add_up():
    assert MEMORY.peak == 605
    assert MEMORY.above_idle == 105


def test_what_a_budget_must_hold():
    assert cost().needed == round(605 + MARGIN_BYTES + MARGIN * 105)


def test_ways_are_compared_by_the_processor_on_one_thread():
    assert cost().work == 1.5
    assert cost(threads=4).work == 2.0


def test_json():
    told = json.loads(json.dumps(cost().as_json()))
    assert told["memory"]["peak"] == 605
    assert told["run_seconds"] == 20.0
    assert told["needed"] == cost().needed


@given(st.floats(0, 1e9), st.floats(0, 1e6), st.integers(5, 512))
def test_a_line_is_found_again_and_measured_points_stay(constant, slope, rows):
    line = Line(tuple((at, constant + slope * at) for at in (1, 2, 4)))
    assert line.at(rows) == pytest.approx(constant + slope * rows, rel=1e-6, abs=1e-6)
    odd = Line(((1, 7.0), (2, 3.0), (4, 5.0)))
    assert [odd.at(at) for at in (1, 2, 4)] == [7.0, 3.0, 5.0]


def test_one_point_is_a_constant():
    assert Line(((1, 3.0),)).at(64) == pytest.approx(3.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_the_expected_longest_is_that_of_all_draws(lengths, rows):
    draws = [max(draw) for draw in itertools.product(lengths, repeat=rows)]
    assert longest_of(lengths, rows) == pytest.approx(sum(draws) / len(draws))
