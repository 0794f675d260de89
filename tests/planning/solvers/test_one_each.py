import numpy as np
import pytest
from fleets import best_joint, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning import (
    FixedRateLink,
    InfeasiblePlan,
    MixedLink,
    ShannonLink,
    ascend_dual,
    finish_seconds,
    match_blocks,
    solve_one_each,
)
from taskedge.planning.bandwidth import least_bandwidths


@pytest.mark.slow
def test_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        blocks = int(rng.integers(1, 4))
        case = draw(rng, int(rng.integers(blocks, 5)), blocks)
        plan = solve_one_each(*case)
        assert plan.latency == pytest.approx(best_joint(*case), rel=1e-8)
        assert (plan.gap, plan.stopped) == (0.0, "optimal")
        assert plan.bandwidth_of_block.sum() <= case[4] * (1 + 1e-12)
        assert finish_seconds(plan, case[0], case[2], case[3]).max() == pytest.approx(plan.latency, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["radio", "anticorrelated", "wired", "mixed", "half without signal"])
def test_pruning_loses_nothing(kind):
    """A fleet large enough to be pruned, against its whole table in one dense assignment."""
    rng = np.random.default_rng(1)
    devices = 500
    for blocks in (1, 3, 6):
        compute, fits, bits, link, bandwidth = draw(rng, devices, blocks)
        snr, cable = link.snr_hz, FixedRateLink(10 ** rng.uniform(4, 8, devices))
        if kind == "anticorrelated":  # fast devices on bad radio: nobody dominates anybody
            link = ShannonLink(np.sort(snr)[np.argsort(np.argsort(compute[:, 0]))])
        elif kind == "half without signal":
            link = ShannonLink(np.where(rng.random(devices) < 0.5, 0.0, snr))
        elif kind == "wired":
            link = cable
        elif kind == "mixed":
            link = MixedLink(link, cable, rng.random(devices) < 0.3)
        plan = solve_one_each(compute, fits, bits, link, bandwidth)
        assert plan.stopped == "optimal"
        for factor, feasible in ((1 + 1e-8, True), (1 - 1e-8, False)):
            need = least_bandwidths(plan.latency * factor, compute, bits, np.arange(devices)[:, None], link)
            need = np.where(fits & (need <= bandwidth), need, 1e30)
            assert (need[linear_sum_assignment(need)].sum() <= bandwidth) == feasible
        if blocks > 1:  # the dual ascent prunes in another way
            ascent = ascend_dual(compute, fits, bits, link, bandwidth, max_iterations=10)
            assert ascent.lower_bound * (1 - 1e-9) <= plan.latency <= ascent.latency * (1 + 1e-9)


def test_fixed_rates_make_it_a_matching():
    rng = np.random.default_rng(2)
    for _ in range(30):
        devices, blocks = int(rng.integers(4, 12)), int(rng.integers(1, 5))
        compute = rng.integers(0, 5, (devices, blocks)).astype(float)
        bits, rates = rng.integers(0, 4, blocks).astype(float), rng.integers(1, 4, devices).astype(float)
        fits = rng.random((devices, blocks)) < 0.8
        latency = compute + bits / rates[:, None]
        try:
            expected = match_blocks(latency, fits).latency
        except InfeasiblePlan:
            continue
        plan = solve_one_each(compute, fits, bits, FixedRateLink(rates), 1.0)
        assert plan.latency == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert plan.bandwidth_of_block.sum() == 0


def test_wired_devices_leave_the_band_to_the_others():
    radio, cable = ShannonLink(np.full(2, 1e7)), FixedRateLink(np.full(2, 1e6))
    args = np.full((2, 2), 0.1), np.ones((2, 2), bool), np.full(2, 1e5)
    plan = solve_one_each(*args, MixedLink(radio, cable, np.array([False, True])), 1e6)
    wireless = plan.device_of_block == 0
    assert plan.bandwidth_of_block[wireless] == pytest.approx(1e6)
    assert plan.bandwidth_of_block[~wireless] == 0


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.integers(1, 4),
    extra=st.integers(0, 3),
    data=st.data(),
    bandwidth=st.sampled_from([1e-3, 1.0, 1e6, 1e12]),
)
def test_numerical_edges(blocks, extra, data, bandwidth):
    """Equal gains, empty payloads, no compute, figures that differ by 1e9: finite, within the band, under the cap."""
    devices = blocks + extra
    size = st.sampled_from([0.0, 1e-9, 1.0, 1e9])
    compute = np.array(data.draw(st.lists(size, min_size=devices * blocks, max_size=devices * blocks)))
    compute = np.sort(compute.reshape(devices, blocks), axis=1)
    bits = np.array(data.draw(st.lists(size, min_size=blocks, max_size=blocks)))
    snr = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 1e6, 1e9]), min_size=devices, max_size=devices)))
    plan = solve_one_each(compute, np.ones((devices, blocks), bool), bits, ShannonLink(snr), bandwidth)
    assert plan.stopped == "optimal"
    assert np.isfinite(plan.latency)
    assert np.isfinite(plan.bandwidth_of_block).all()
    assert plan.bandwidth_of_block.sum() <= bandwidth * (1 + 1e-9)
    done = finish_seconds(plan, compute, bits, ShannonLink(snr))
    assert done.max() == pytest.approx(plan.latency, rel=1e-9)


def test_iteration_cap_is_reported_with_a_valid_bound():
    case = draw(np.random.default_rng(3), 12, 6)
    capped, best = solve_one_each(*case, max_steps=0), solve_one_each(*case)
    assert capped.stopped == "cap"
    assert capped.lower_bound <= best.latency <= capped.latency


def test_a_device_without_signal_is_never_asked_to_send():
    link = ShannonLink(np.array([0.0, 1e6]))
    args = np.ones((2, 1)), np.ones((2, 1), bool), np.ones(1)
    assert solve_one_each(*args, link, 1e3).device_of_block.tolist() == [1]
    with pytest.raises(InfeasiblePlan):
        solve_one_each(*args, ShannonLink(np.zeros(2)), 1e3)


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        solve_one_each(np.array([[np.nan]]), np.ones((1, 1), bool), [-1.0, 2.0], ShannonLink(np.ones(3)), 0.0)
    for part in ("nan", "bits", "3 devices", "bandwidth"):
        assert part in str(caught.value)


def test_without_scipy_the_error_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(TaskEdgeError, match=r"taskedge\[plan\]"):
        solve_one_each(*draw(np.random.default_rng(4), 3, 2))
