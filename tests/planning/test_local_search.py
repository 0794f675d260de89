"""Needs of neighbors against needs computed from scratch, and the memory of sets of blocks."""

import numpy as np
import pytest
from fleets import draw, draw_any

from taskedge.planning import BlockMemory, FixedRateLink, InfeasiblePlan, ShannonLink
from taskedge.planning.local_search import Search, _Descent
from taskedge.planning.problem import check_instance


def search_of(seed, devices, blocks, with_memory=True):
    case, memory = draw_any(np.random.default_rng(seed), devices, blocks)
    return Search(check_instance(*case, memory if with_memory else None))


def fits_together(search, device):
    memory = search.instance.memory
    for k, blocks in search.sets(device):
        if not search.usable[k, blocks].all():
            return False
        if memory.alone[k, blocks[-1]] + memory.extra[k, blocks[:-1]].sum() > memory.capacity[k]:
            return False
    return True


def total_need(search, device, deadline):
    seconds, payload = search.loads(device)
    return search.need(deadline, seconds, payload, np.arange(search.devices))


@pytest.mark.parametrize("seed", range(5))
def test_needs_after_moves_are_those_of_the_new_assignment(seed):
    rng = np.random.default_rng(seed)
    search = search_of(seed, 4, 6, with_memory=False)
    search.usable[:] = True  # any assignment will do
    search.seconds[~np.isfinite(search.seconds)] = 5.0
    device = rng.integers(0, 4, 6)
    descent = _Descent(search, device, deadline=2.0)
    for _ in range(6):
        block, k = int(rng.integers(6)), int(rng.integers(4))
        if descent.device[block] != k:
            descent.move([(block, k)])
        assert descent.required == pytest.approx(total_need(search, descent.device, 2.0))
    for block in range(6):
        for k in set(range(4)) - {int(descent.device[block])}:
            moved = descent.device.copy()
            moved[block] = k
            need = total_need(search, moved, 2.0)
            assert descent.add[k, block] == pytest.approx(need[k])
            assert descent.without[block] == pytest.approx(need[descent.device[block]])
    for b, c in ((0, 1), (2, 5), (3, 4)):
        if descent.device[b] != descent.device[c]:
            swapped = descent.device.copy()
            swapped[[b, c]] = swapped[[c, b]]
            need = total_need(search, swapped, 2.0)
            assert descent.swap[b, c] == pytest.approx(need[descent.device[b]])
            assert descent.swap[c, b] == pytest.approx(need[descent.device[c]])


@pytest.mark.parametrize("seed", range(6))
def test_no_step_leaves_the_memory(seed):
    search = search_of(seed, 3, 5)
    start = search.assign(np.full(5, -1))
    if start is None:
        return
    assert search.feasible(start)
    assert fits_together(search, start)
    improved, _ = search.improve(start)
    assert search.feasible(improved)
    assert fits_together(search, improved)
    assert search.latency(improved) <= search.latency(start)
    spread = search.spread(improved)
    assert fits_together(search, spread)
    assert search.latency(spread) <= search.latency(improved) * (1 + 1e-9)


def test_feasible_counts_the_extra_bytes_and_copies():
    memory = BlockMemory(np.array([[1.0, 2.0]]), np.array([[0.5, 0.5]]), np.array([2.4]))
    link = FixedRateLink(np.ones(1))
    args = np.ones((1, 2)), np.ones((1, 2), bool), np.ones(2), link, 1.0
    assert not Search(check_instance(*args, memory)).feasible(np.array([0, 0]))
    assert Search(check_instance(*args)).feasible(np.array([0, 0]))
    assert not Search(check_instance(*args, None, [4, 4])).feasible(np.array([0, 0]))


def test_work_is_counted_and_ends_the_search():
    case = draw(np.random.default_rng(1), 8, 8)
    search = Search(check_instance(*case))
    start = search.assign(np.full(8, -1))
    assert search.improve(start, max_evaluated=0)[1] == 0
    assert search.improve(start)[1] > 0
    assert search.evaluated > 0


def test_a_block_that_no_device_can_send_is_named():
    args = np.ones((2, 2)), np.ones((2, 2), bool), np.ones(2)
    with pytest.raises(InfeasiblePlan, match="no device can take block 1"):
        Search(check_instance(*args, ShannonLink(np.zeros(2)), 1.0))
