"""The dual ascent: its bound is below the optimum of one block a device, its plans are not, and its step is stated."""

import numpy as np
import pytest
from fleets import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.planning import (
    FixedRateLink,
    InfeasiblePlan,
    ShannonLink,
    allocate_jointly,
    ascend_dual,
    solve_exactly,
    solve_one_each,
)
from taskedge.planning.solvers.dual_ascent import project_to_simplex


@pytest.mark.slow
def test_between_its_bound_and_a_small_gap():
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(4):
        blocks = int(rng.integers(4, 13))
        case = draw(rng, int(rng.integers(blocks, 25)), blocks)
        plan, best = ascend_dual(*case), solve_one_each(*case)
        assert plan.lower_bound <= best.latency * (1 + 1e-9)
        assert plan.latency >= best.latency * (1 - 1e-9)
        assert plan.bandwidth_of_block.sum() <= case[4] * (1 + 1e-12)
        assert plan.stopped in {"closed", "cap"}
        gaps.append(plan.latency / best.latency - 1)
    assert np.mean(gaps) <= 0.05
    assert max(gaps) <= 0.2


def test_the_bound_rises_with_the_steps():
    case = draw(np.random.default_rng(4), 10, 6)
    bounds = [ascend_dual(*case, max_iterations=steps).lower_bound for steps in (1, 20, 150)]
    assert bounds == sorted(bounds)
    assert bounds[-1] >= 0.6 * solve_one_each(*case).latency


def test_identical_devices_close_the_gap():
    compute = np.full((6, 4), 0.5)
    plan = ascend_dual(
        compute, np.ones((6, 4), bool), np.full(4, 1e6), ShannonLink(np.full(6, 1e8)), 1e6, max_iterations=5000
    )
    assert plan.gap <= 0.01
    assert plan.bandwidth_of_block == pytest.approx(2.5e5)


def test_cap_is_reported():
    plan = ascend_dual(*draw(np.random.default_rng(1), 16, 8), max_iterations=3)
    assert (plan.stopped, plan.iterations) == ("cap", 3)


def test_fixed_rates():
    rng = np.random.default_rng(2)
    compute, fits, bits, _, bandwidth = draw(rng, 10, 5)
    link = FixedRateLink(rng.uniform(1e5, 1e7, 10))
    best = solve_one_each(compute, fits, bits, link, bandwidth).latency
    plan = ascend_dual(compute, fits, bits, link, bandwidth, max_iterations=50)
    assert best * (1 - 1e-9) <= plan.latency <= best * 1.2
    assert plan.lower_bound <= best * (1 + 1e-9)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_the_projection_is_the_nearest_point_of_the_simplex(point):
    point = np.array(point)
    nearest = project_to_simplex(point)
    assert nearest.min() >= 0
    assert nearest.sum() == pytest.approx(1)
    for corner in np.eye(point.size):  # no corner lies in the direction of the remaining distance
        assert (point - nearest) @ (corner - nearest) <= 1e-9


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(blocks=st.integers(1, 3), extra=st.integers(0, 2), data=st.data(), bandwidth=st.sampled_from([1e-3, 1.0, 1e9]))
def test_numerical_edges(blocks, extra, data, bandwidth):
    devices = blocks + extra
    size = st.sampled_from([0.0, 1e-9, 1.0, 1e9])
    compute = np.array(data.draw(st.lists(size, min_size=devices * blocks, max_size=devices * blocks)))
    compute = np.sort(compute.reshape(devices, blocks), axis=1)
    bits = np.array(data.draw(st.lists(size, min_size=blocks, max_size=blocks)))
    snr = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 1e9]), min_size=devices, max_size=devices)))
    case = compute, np.ones((devices, blocks), bool), bits, ShannonLink(snr), bandwidth
    plan, best = ascend_dual(*case, max_iterations=40), solve_one_each(*case)
    assert np.isfinite([plan.latency, plan.lower_bound, *plan.bandwidth_of_block]).all()
    assert plan.lower_bound <= best.latency * (1 + 1e-9)
    assert plan.latency >= best.latency * (1 - 1e-9)


def test_infeasible():
    compute, fits, bits, link, bandwidth = draw(np.random.default_rng(3), 6, 4)
    with pytest.raises(InfeasiblePlan, match="block 1"):
        ascend_dual(compute, fits & (np.arange(4) != 1), bits, link, bandwidth)


def test_the_former_function_still_plans():
    case = draw(np.random.default_rng(5), 6, 4)
    with pytest.warns(DeprecationWarning, match="reassign are ignored"):
        plan = allocate_jointly(*case, reassign=True)
    assert plan.latency == solve_exactly(*case).latency
