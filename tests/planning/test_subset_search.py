"""The dynamic program over sets of blocks against brute force, from good and bad starts."""

import numpy as np
import pytest
from fleets import best_several, draw_any

from taskedge.planning.local_search import Search
from taskedge.planning.problem import check_instance
from taskedge.planning.subset_search import _splits, any_assignment, can_prove, prove


@pytest.mark.parametrize("seed", range(6))
def test_the_worst_start_ends_at_the_optimum(seed):
    case, memory = draw_any(np.random.default_rng(seed), 3, 4)
    best = best_several(*case, memory)
    search = Search(check_instance(*case, memory))
    start = any_assignment(search)
    assert (start is None) == (not np.isfinite(best))
    if start is None:
        return
    assert search.feasible(start)
    device, steps, proved = prove(search, start, max_steps=100)
    assert proved
    assert steps >= 1
    assert search.feasible(device)
    assert search.latency(device) == pytest.approx(best, rel=1e-8)


def test_too_few_steps_prove_nothing():
    case, _ = draw_any(np.random.default_rng(0), 3, 4)
    search = Search(check_instance(*case))
    start = np.zeros(4, dtype=np.intp)
    device, steps, proved = prove(search, start, max_steps=0)
    assert (device.tolist(), steps, proved) == (start.tolist(), 0, False)


def test_every_split_of_every_set_is_there_once():
    part, rest, starts = _splits(4)
    assert part.size == 3**4
    assert len(set(zip(part.tolist(), rest.tolist(), strict=True))) == part.size
    assert ((part & rest) == 0).all()
    assert (np.diff(part | rest) >= 0).all()
    assert (part | rest)[starts].tolist() == list(range(16))


def test_the_size_of_a_provable_problem():
    assert can_prove(60, 12)
    assert not can_prove(60, 13)
    assert not can_prove(1, 96)
