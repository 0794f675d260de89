import numpy as np
import pytest
from fleets import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.planning import FixedRateLink, InfeasiblePlan, ShannonLink, allocate_jointly, solve_exactly


@pytest.mark.slow
@pytest.mark.parametrize("reassign", [True, False])
def test_between_its_bound_and_a_small_gap(reassign):
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(12):
        blocks = int(rng.integers(4, 13))
        case = draw(rng, int(rng.integers(blocks, 25)), blocks)
        plan, best = allocate_jointly(*case, reassign=reassign), solve_exactly(*case)
        assert plan.lower_bound <= best.latency * (1 + 1e-9)
        assert plan.latency >= best.latency * (1 - 1e-9)
        assert plan.bandwidth_of_block.sum() <= case[4] * (1 + 1e-12)
        assert plan.stopped in {"closed", "stalled"}
        gaps.append(plan.latency / best.latency - 1)
    assert np.mean(gaps) <= 0.01
    assert max(gaps) <= (0.05 if reassign else 0.15)


def test_identical_devices_close_the_gap():
    compute = np.full((6, 4), 0.5)
    plan = allocate_jointly(compute, np.ones((6, 4), bool), np.full(4, 1e6), ShannonLink(np.full(6, 1e8)), 1e6)
    assert plan.stopped == "closed"
    assert plan.gap <= 1e-6
    assert plan.bandwidth_of_block == pytest.approx(2.5e5)


def test_cap_is_reported():
    plan = allocate_jointly(*draw(np.random.default_rng(1), 16, 8), max_iterations=3)
    assert (plan.stopped, plan.iterations) == ("cap", 3)


def test_fixed_rates():
    rng = np.random.default_rng(2)
    compute, fits, bits, _, bandwidth = draw(rng, 10, 5)
    link = FixedRateLink(rng.uniform(1e5, 1e7, 10))
    best = solve_exactly(compute, fits, bits, link, bandwidth).latency
    plan = allocate_jointly(compute, fits, bits, link, bandwidth)
    assert best * (1 - 1e-9) <= plan.latency <= best * 1.05
    assert plan.lower_bound <= best * (1 + 1e-9)


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
    plan, best = allocate_jointly(*case), solve_exactly(*case)
    assert np.isfinite([plan.latency, plan.lower_bound, *plan.bandwidth_of_block]).all()
    assert plan.lower_bound <= best.latency * (1 + 1e-9)
    assert plan.latency >= best.latency * (1 - 1e-9)


def test_infeasible():
    compute, fits, bits, link, bandwidth = draw(np.random.default_rng(3), 6, 4)
    with pytest.raises(InfeasiblePlan, match="block 1"):
        allocate_jointly(compute, fits & (np.arange(4) != 1), bits, link, bandwidth)
