"""Lines go through the measured points, and the peak of a run is that of its most expensive part."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskedge.training.memory.extrapolate import (
    LOOP_BYTES,
    CostLine,
    IdleMemory,
    StepMeasurement,
    Timing,
    TrainedMemory,
    expected_longest,
    predict_memory,
    predict_step_time,
    steps_of_epoch,
)

MEASURED = StepMeasurement(
    saved=CostLine(((1, 100.0), (2, 200.0))),
    peak=CostLine(((1, 150.0), (2, 300.0))),
    excess=7,
    wall=CostLine(((1, 1.0), (2, 2.0))),
    cpu=CostLine(((1, 0.5), (2, 1.0))),
    optimizer=Timing(0.25, 0.125),
    resident=2000,
    compiler=0,
)
IDLE, TRAINED = IdleMemory(process=1000, base=500, loading=1600), TrainedMemory(state=60, head=20, backup=10)


def memory(**changes):
    figures = {"rows": 4, "input_bytes": 11, "compiler_bytes": 0, "selection_bytes": None, "evaluation_bytes": None}
    return predict_memory(MEASURED, IDLE, TRAINED, **figures | changes)


@given(st.floats(0, 1e9), st.floats(0, 1e6), st.integers(5, 512))
def test_a_line_is_found_again_and_measured_points_stay(constant, slope, rows):
    line = CostLine(tuple((n, constant + slope * n) for n in (1, 2, 4)))
    assert line.at(rows) == pytest.approx(constant + slope * rows, rel=1e-6, abs=1e-6)
    odd = CostLine(((1, 7.0), (2, 3.0), (4, 5.0)))
    assert [odd.at(n) for n in (1, 2, 4)] == [7.0, 3.0, 5.0]


def test_one_point_is_a_constant():
    assert CostLine(((1, 3.0),)).at(64) == pytest.approx(3.0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_the_expected_longest_is_that_of_all_draws(lengths, rows):
    draws = [max(draw) for draw in itertools.product(lengths, repeat=rows)]
    assert expected_longest(lengths, rows) == pytest.approx(sum(draws) / len(draws))


def test_the_peak_of_a_step():
    step = memory()
    assert (step.part, step.process, step.base, step.entries, step.head) == ("step", 1000, 500, 40, 20)
    assert (step.saved, step.temporary) == (400 + 11, 600 - 400)
    assert step.runtime == 2000 - 1000 - 500 - 60 - 10 + 7 + LOOP_BYTES
    assert memory(compiler_bytes=-50).runtime == step.runtime - 50
    assert memory(compiler_bytes=-(10**6)).runtime == LOOP_BYTES


def test_the_part_with_the_highest_peak_counts():
    selection = memory(selection_bytes=10**6)
    assert (selection.part, selection.temporary, selection.entries, selection.saved) == ("selection", 10**6, 0, 0)
    evaluation = memory(selection_bytes=10**6, evaluation_bytes=10**6)
    assert (evaluation.part, evaluation.temporary, evaluation.entries) == ("evaluation", 10**6, 40)
    loading = predict_memory(
        MEASURED, replace(IDLE, loading=10**9), TRAINED, rows=4, input_bytes=0, compiler_bytes=0,
        selection_bytes=10**6, evaluation_bytes=None,
    )  # fmt: skip
    assert (loading.part, loading.peak, loading.runtime) == ("loading", 10**9, 0)


def test_the_time_of_a_step():
    lengths = [8] * 12
    whole = predict_step_time(MEASURED, lengths, rows=4, batch_size=4, accumulate=1)
    assert (whole.wall, whole.cpu) == pytest.approx((4.25, 2.125))
    parts = predict_step_time(MEASURED, lengths, rows=2, batch_size=4, accumulate=2)
    assert parts.wall == pytest.approx(12 / 2 / 2 * 2.0 + 0.25)  # 6 passes of 2 rows in 2 steps
    assert steps_of_epoch(13, 4, 1) == 4


def test_the_loss_counts_if_it_takes_more_than_the_blocks():
    assert memory(loss_bytes=1).peak == memory().peak
    assert memory(loss_bytes=10_000).temporary == 10_000
