"""The fast search: near the optimum, within memory, and never below its bound."""

import numpy as np
import pytest
from fleets import best_several, draw, draw_any
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.planning import (
    BlockMemory,
    InfeasiblePlan,
    ShannonLink,
    allocate_several,
    finish_seconds,
    solve_exactly,
    solve_one_each,
)


def few_devices(rng, devices, blocks):
    compute, _, bits, link, bandwidth = draw(rng, max(devices, blocks), blocks)
    return compute[:devices], np.ones((devices, blocks), bool), bits, ShannonLink(link.snr_hz[:devices]), bandwidth


@pytest.mark.slow
def test_near_the_optimum():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        case = few_devices(rng, int(rng.integers(1, 9)), int(rng.integers(2, 9)))
        plan, best = allocate_several(*case), solve_exactly(*case).latency
        assert plan.lower_bound <= best * (1 + 1e-9)
        assert plan.latency >= best * (1 - 1e-9)
        ratios.append(plan.latency / best)
    assert np.mean(ratios) <= 1.01


def test_a_device_computes_to_its_deepest_block_and_sends_the_sum():
    compute = np.array([[1.0, 2.0, 3.0]])
    link = ShannonLink(np.array([4.0]))
    plan = allocate_several(compute, np.ones((1, 3), bool), [1.0, 2.0, 5.0], link, 4.0)
    assert plan.latency == pytest.approx(3 + 8 / 4)
    assert plan.bandwidth_of_block == pytest.approx([0.5, 1.0, 2.5])
    assert finish_seconds(plan, compute, [1.0, 2.0, 5.0], link) == pytest.approx(5.0)


def test_respects_what_fits():
    rng = np.random.default_rng(1)
    compute, fits, bits, link, bandwidth = few_devices(rng, 4, 9)
    fits = np.arange(9) < np.array([9, 3, 3, 6])[:, None]
    plan = allocate_several(compute, fits, bits, link, bandwidth, restarts=1)
    assert fits[plan.device_of_block, np.arange(9)].all()
    assert plan.bandwidth_of_block.sum() <= bandwidth * (1 + 1e-12)
    with pytest.raises(InfeasiblePlan, match="block 8"):
        allocate_several(compute, fits & (np.arange(9) < 8), bits, link, bandwidth)


@pytest.mark.slow
def test_respects_the_memory_of_several_blocks_together():
    for seed in range(4):
        case, memory = draw_any(np.random.default_rng(seed), 3, 3)
        best = best_several(*case, memory)
        if not np.isfinite(best):
            with pytest.raises(InfeasiblePlan):
                allocate_several(*case, memory=memory)
            continue
        plan = allocate_several(*case, memory=memory, restarts=2)
        assert plan.lower_bound <= best * (1 + 1e-9)
        for part in plan.assignments():
            used = memory.alone[part.device, part.blocks[-1]] + memory.extra[part.device, list(part.blocks[:-1])].sum()
            assert used <= memory.capacity[part.device]


def test_with_many_devices_it_is_never_slower_than_one_block_each():
    case = draw(np.random.default_rng(2), 12, 5)
    plan = allocate_several(*case, restarts=0)
    assert plan.lower_bound <= plan.latency <= solve_one_each(*case).latency * (1 + 1e-9)


@pytest.mark.slow
def test_a_large_fleet_is_searched_on_its_best_devices():
    case = draw(np.random.default_rng(3), 3000, 4)
    plan = allocate_several(*case)
    assert plan.latency <= solve_one_each(*case).latency * (1 + 1e-9)
    assert 0 < plan.lower_bound <= plan.latency


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(devices=st.integers(1, 3), blocks=st.integers(1, 5), data=st.data())
def test_numerical_edges(devices, blocks, data):
    size = st.sampled_from([0.0, 1e-9, 1.0, 1e9])
    compute = np.array(data.draw(st.lists(size, min_size=devices * blocks, max_size=devices * blocks)))
    compute = np.sort(compute.reshape(devices, blocks), axis=1)
    bits = np.array(data.draw(st.lists(size, min_size=blocks, max_size=blocks)))
    snr = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 1e9]), min_size=devices, max_size=devices)))
    case = compute, np.ones((devices, blocks), bool), bits, ShannonLink(snr), 1.0
    plan = allocate_several(*case)
    assert np.isfinite([plan.latency, plan.lower_bound, *plan.bandwidth_of_block]).all()
    assert plan.lower_bound <= solve_exactly(*case).latency * (1 + 1e-9)


def test_the_same_seed_is_the_same_plan_and_steps():
    case = few_devices(np.random.default_rng(5), 3, 7)
    first, second = allocate_several(*case, seed=3, restarts=2), allocate_several(*case, seed=3, restarts=2)
    assert first.to_dict() == second.to_dict()


def test_memory_that_no_plan_within_the_search_fits_is_said():
    blocks = 18  # beyond the proof
    memory = BlockMemory(np.ones((2, blocks)), np.ones((2, blocks)), np.full(2, 3.0))
    with pytest.raises(InfeasiblePlan, match="random assignments found no plan"):
        allocate_several(
            np.ones((2, blocks)),
            np.ones((2, blocks), bool),
            np.ones(blocks),
            ShannonLink(np.ones(2)),
            1.0,
            memory=memory,
        )
