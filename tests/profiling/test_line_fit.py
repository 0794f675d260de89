from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taskedge.profiling.line_fit import rising_line


def test_a_line_is_found_again() -> None:
    work = np.array([1.0, 3.0, 4.0, 9.0])
    truth = 2.0 + 0.5 * work
    assert np.allclose(rising_line(work, [1, 3, 4], truth[[0, 2, 3]]), truth)


def test_falling_measurements_give_a_constant() -> None:
    got = rising_line(np.arange(1.0, 5.0), [1, 4], [3.0, 1.0])
    assert np.allclose(got, got[0])
    assert 1 < got[0] < 3


def test_a_line_through_the_origin_at_least() -> None:
    got = rising_line(np.arange(1.0, 5.0), [1, 4], [0.1, 8.0])
    assert got[0] > 0
    assert np.allclose(got / got[0], np.arange(1.0, 5.0))


def test_one_depth_and_no_work() -> None:
    assert np.allclose(rising_line(np.arange(1.0, 4.0), [2], [5.0]), 5.0)
    assert np.allclose(rising_line(np.zeros(3), [1, 3], [5.0, 5.0]), 5.0)


positive = st.floats(1e-9, 1e12, allow_nan=False)


@given(st.lists(positive, min_size=1, max_size=12), st.data())
def test_never_falls_and_never_nan(steps, data) -> None:
    work = np.cumsum(steps)
    depths = data.draw(st.lists(st.integers(1, len(steps)), min_size=1, max_size=4, unique=True))
    measured = data.draw(st.lists(positive, min_size=len(depths), max_size=len(depths)))
    got = rising_line(work, depths, measured)
    assert np.isfinite(got).all()
    assert (got > 0).all()
    assert (np.diff(got) >= 0).all()
