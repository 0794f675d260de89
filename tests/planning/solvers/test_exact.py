"""The optimum over all plans, with idle devices and several blocks on a device."""

from dataclasses import replace

import numpy as np
import pytest
from fleets import best_several, draw, draw_any, with_device
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.errors import InputError
from taskedge.planning import (
    BlockMemory,
    FixedRateLink,
    InfeasiblePlan,
    MixedLink,
    ShannonLink,
    allocate_several,
    finish_seconds,
    solve_exactly,
    solve_one_each,
)
from taskedge.planning.bandwidth import share_bandwidth


def latency_or_inf(case, memory=None, **more):
    try:
        return solve_exactly(*case, memory=memory, **more).latency
    except InfeasiblePlan:
        return np.inf


def check(plan, case, memory):
    compute, fits, bits, link, bandwidth = case
    assert finish_seconds(plan, compute, bits, link).max() == pytest.approx(plan.latency, rel=1e-9)
    assert plan.bandwidth_of_block.sum() <= bandwidth * (1 + 1e-9)
    assert fits[plan.device_of_block, np.arange(bits.size)].all()
    for part in plan.assignments():
        *others, deepest = part.blocks
        used = memory.alone[part.device, deepest] + memory.extra[part.device, others].sum()
        assert used <= memory.capacity[part.device]


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    case, memory = draw_any(rng, int(rng.integers(1, 5)), int(rng.integers(1, 4)))
    best = best_several(*case, memory)
    assert latency_or_inf(case, memory) == (pytest.approx(best, rel=1e-8) if np.isfinite(best) else np.inf)
    if np.isfinite(best):
        plan = solve_exactly(*case, memory=memory)
        assert plan.stopped == "optimal"
        check(plan, case, memory)


@pytest.mark.slow
def test_agrees_with_brute_force_on_more_instances():
    rng = np.random.default_rng(100)
    for _ in range(10):
        case, memory = draw_any(rng, int(rng.integers(1, 4)), int(rng.integers(1, 6)))
        best = best_several(*case, memory)
        assert latency_or_inf(case, memory) == (pytest.approx(best, rel=1e-8) if np.isfinite(best) else np.inf)


def test_fixed_rates_agree_with_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(12):
        devices, blocks = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        compute = np.sort(rng.integers(0, 5, (devices, blocks)).astype(float), axis=1)
        bits, rates = rng.integers(0, 4, blocks).astype(float), rng.integers(0, 4, devices).astype(float)
        case = compute, rng.random((devices, blocks)) < 0.8, bits, FixedRateLink(rates), 1.0
        best = best_several(*case)
        assert latency_or_inf(case) == (pytest.approx(best, rel=1e-9, abs=1e-12) if np.isfinite(best) else np.inf)


@pytest.mark.parametrize("weak", ["slow", "one byte", "no radio"])
def test_a_weak_device_that_joins_stays_idle(weak):
    """With as many devices as blocks, each had to take one: 53 times slower, or no plan."""
    devices, blocks = 6, 7
    seconds = np.cumsum(np.full(blocks, 1.0))
    compute = np.tile(seconds, (devices + 1, 1)) / np.linspace(1, 1.5, devices + 1)[:, None]
    memory = np.full(devices + 1, 1e9)
    snr = np.full(devices + 1, 1e8)
    if weak == "slow":
        compute[-1] *= 100
    elif weak == "one byte":
        memory[-1] = 1
    else:
        snr[-1] = 0
    fits = np.tile(memory[:, None] > 1e6, (1, blocks))

    def plan(count):
        return solve_exactly(compute[:count], fits[:count], np.full(blocks, 1e5), ShannonLink(snr[:count]), 1e6)

    before, after = plan(devices), plan(devices + 1)
    assert after.latency == pytest.approx(before.latency, rel=1e-9)
    assert after.lower_bound == pytest.approx(after.latency, rel=1e-9)
    assert devices not in after.device_of_block


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000), st.booleans())
def test_more_never_makes_the_optimum_worse(devices, blocks, seed, dead):
    rng = np.random.default_rng(seed)
    case, memory = draw_any(rng, devices, blocks)
    before = latency_or_inf(case, memory)
    compute, fits, bits, link, bandwidth = case
    larger, more = with_device(case, memory, rng, dead=dead)
    k = rng.integers(devices)
    room = memory.capacity * np.where(np.arange(devices) == k, 2.0, 1.0)
    wider_fits = fits | (np.arange(devices) == k)[:, None] & (memory.alone <= room[:, None])
    louder = ShannonLink(link.snr_hz * np.where(np.arange(devices) == k, 3.0, 1.0))
    changes = {
        "a device": latency_or_inf(larger, more),
        "memory": latency_or_inf((compute, wider_fits, bits, link, bandwidth), replace(memory, capacity=room)),
        "band": latency_or_inf((compute, fits, bits, link, bandwidth * 1.5), memory),
        "power": latency_or_inf((compute, fits, bits, louder, bandwidth), memory),
    }
    for what, after in changes.items():
        assert after <= before * (1 + 1e-9), what


def test_never_slower_than_one_block_each():
    for seed in range(4):
        case = draw(np.random.default_rng(seed), 9, 6)
        assert solve_exactly(*case).latency <= solve_one_each(*case).latency * (1 + 1e-9)


def test_copies_of_a_block_are_on_different_devices():
    case, _ = draw_any(np.random.default_rng(5), 3, 6)
    compute, _, bits, link, bandwidth = case
    columns = np.repeat(np.arange(3), 2)
    plan = solve_exactly(compute[:, columns], np.ones((3, 6), bool), bits[columns], link, bandwidth, copy_of=columns)
    pairs = plan.device_of_block.reshape(3, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    with pytest.raises(InfeasiblePlan):
        solve_exactly(
            compute[:1, columns],
            np.ones((1, 6), bool),
            bits[columns],
            ShannonLink(link.snr_hz[:1]),
            1e6,
            copy_of=columns,
        )


def test_blocks_spread_where_this_costs_no_time():
    """Four equal wired devices, and a round that one of them decides alone."""
    compute = np.tile([0.0, 0.0, 0.0, 10.0], (4, 1))
    plan = solve_exactly(compute, np.ones((4, 4), bool), np.array([1.0, 1, 1, 0]), FixedRateLink(np.ones(4)), 1.0)
    assert plan.latency == pytest.approx(10)
    assert len(set(plan.device_of_block)) == 4


def test_a_slack_buys_devices_and_the_bound_stays():
    compute = np.array([[1.0, 1.0, 10.0], [11.0, 11.0, 11.0], [12.0, 12.0, 12.0]])
    args = compute, np.ones((3, 3), bool), np.zeros(3), FixedRateLink(np.ones(3)), 1.0
    best, more = solve_exactly(*args), solve_exactly(*args, spread_slack=0.15)
    assert (best.latency, best.stopped, set(best.device_of_block)) == (10.0, "optimal", {0})
    assert (more.latency, more.stopped, more.lower_bound) == (11.0, "spread", pytest.approx(10.0))
    assert len(set(more.device_of_block)) == 2


def test_a_memory_that_only_some_sets_fit():
    memory = BlockMemory(np.ones((2, 3)), np.ones((2, 3)), np.array([2.0, 1.0]))
    link = FixedRateLink(np.array([1.0, 1.0]))
    plan = solve_exactly(np.ones((2, 3)), np.ones((2, 3), bool), np.ones(3), link, 1.0, memory=memory)
    assert np.bincount(plan.device_of_block).tolist() == [2, 1]
    with pytest.raises(InfeasiblePlan, match="no plan exists in which the blocks of each device fit it together"):
        solve_exactly(
            np.ones((2, 4)),
            np.ones((2, 4), bool),
            np.ones(4),
            link,
            1.0,
            memory=BlockMemory(np.ones((2, 4)), np.ones((2, 4)), np.array([2.0, 1.0])),
        )


def test_mixed_links_and_a_fleet_without_any_link():
    radio, cable = ShannonLink(np.full(2, 1e7)), FixedRateLink(np.full(2, 1e6))
    args = np.full((2, 2), 0.1), np.ones((2, 2), bool), np.full(2, 1e5)
    plan = solve_exactly(*args, MixedLink(radio, cable, np.array([False, True])), 1e6)
    assert plan.latency <= solve_one_each(*args, MixedLink(radio, cable, np.array([False, True])), 1e6).latency
    with pytest.raises(InfeasiblePlan, match="no device can take block 1"):
        solve_exactly(*args, ShannonLink(np.zeros(2)), 1e6)


@settings(deadline=None, max_examples=30)
@given(
    devices=st.integers(1, 4), blocks=st.integers(1, 4), data=st.data(), bandwidth=st.sampled_from([1e-3, 1.0, 1e12])
)
def test_numerical_edges(devices, blocks, data, bandwidth):
    size = st.sampled_from([0.0, 1e-9, 1.0, 1e9])
    compute = np.array(data.draw(st.lists(size, min_size=devices * blocks, max_size=devices * blocks)))
    compute = np.sort(compute.reshape(devices, blocks), axis=1)
    bits = np.array(data.draw(st.lists(size, min_size=blocks, max_size=blocks)))
    snr = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 1e9]), min_size=devices, max_size=devices)))
    plan = solve_exactly(compute, np.ones((devices, blocks), bool), bits, ShannonLink(snr), bandwidth)
    assert np.isfinite([plan.latency, plan.lower_bound, *plan.bandwidth_of_block]).all()
    assert plan.stopped == "optimal"
    busy = [(compute[a.device, list(a.blocks)].max(), bits[list(a.blocks)].sum(), a.device) for a in plan.assignments()]
    seconds, payload, device = (np.array(column) for column in zip(*busy, strict=True))
    best_split, _ = share_bandwidth(seconds, payload, device.astype(int), ShannonLink(snr), bandwidth)
    assert plan.latency == pytest.approx(best_split, rel=1e-9)


@pytest.mark.slow
def test_beyond_the_proof_the_gap_is_said():
    plan = solve_exactly(*draw(np.random.default_rng(6), 20, 20))
    assert plan.stopped in {"closed", "heuristic"}
    assert 0 < plan.lower_bound <= plan.latency


def test_a_cap_on_the_proof_leaves_a_valid_bound():
    case = draw(np.random.default_rng(3), 12, 6)
    capped, best = solve_exactly(*case, max_steps=0), solve_exactly(*case)
    assert capped.stopped == "heuristic"
    assert capped.lower_bound <= best.latency <= capped.latency


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        solve_exactly(
            np.array([[np.nan]]), np.ones((1, 1), bool), [-1.0, 2.0], ShannonLink(np.ones(3)), 0.0, copy_of=[1],
            memory=BlockMemory(np.ones((2, 1)), np.ones((1, 1)), np.ones(1)),
        )  # fmt: skip
    for part in ("nan", "bits", "3 devices", "bandwidth", "copy_of", "memory must have the shape of compute"):
        assert part in str(caught.value)


def test_a_fleet_too_large_for_the_proof_is_searched_in_full():
    """More devices than MAX_DEVICES with few blocks: K 3^L is small, yet nothing is proved, so the search must run."""
    rng = np.random.default_rng(0)
    devices, blocks = 300, 4
    compute = np.cumsum(rng.uniform(0.2, 1, blocks)) / rng.lognormal(0, 0.8, devices)[:, None]
    case = compute, np.ones((devices, blocks), bool), rng.uniform(0.2, 2, blocks) * 1e6
    link = ShannonLink(10 ** rng.uniform(6, 9, devices))
    plan, searched = solve_exactly(*case, link, 1e6), allocate_several(*case, link, 1e6)
    assert plan.latency == searched.latency
    assert plan.lower_bound == searched.lower_bound > 0
    assert plan.gap < 0.2


def test_fast_devices_that_cannot_send_do_not_crowd_out_slow_ones_that_can():
    """Of 400 devices the two slowest can send: a fleet with further devices has the plan of these two."""
    devices, blocks = 400, 3
    compute = np.array([0.3, 0.6, 1.0]) * np.ones((devices, 1))
    compute[-2:] *= 50
    snr = np.zeros(devices)
    snr[-2:] = 1e8
    case = np.ones((devices, blocks), bool), np.full(blocks, 1e6)
    plan = solve_exactly(compute, *case, ShannonLink(snr), 1e6)
    few = solve_exactly(compute[-2:], case[0][-2:], case[1], ShannonLink(snr[-2:]), 1e6)
    assert few.stopped == "optimal"
    assert plan.latency == pytest.approx(few.latency, rel=1e-6)
    assert set(plan.device_of_block) <= {devices - 2, devices - 1}
