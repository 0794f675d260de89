"""Pruning keeps every pair that an optimum may need, and the assignment of the others is that of a dense one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fleets import draw
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from taskedge.errors import TaskEdgeError
from taskedge.planning import InfeasiblePlan
from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.problem import check_instance
from taskedge.planning.pruning import (
    cheaper_pairs,
    cheapest_assignment,
    cheapest_at_equal_shares,
    import_scipy,
    pad_by_block,
    prune,
    raise_if_unmatched,
    skyband,
)


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 10**6))
def test_the_skyband_has_every_entry_with_few_smaller_ones_before_it(rows, blocks, seed):
    table = np.random.default_rng(seed).integers(0, 20, (rows, blocks)).astype(float)
    row, block, value = skyband(lambda part, _: table[part], rows, blocks)
    assert (value == table[row, block]).all()
    kept = set(zip(row.tolist(), block.tolist(), strict=True))
    for b in range(blocks):
        for k in range(rows):
            if (table[:k, b] <= table[k, b]).sum() < blocks:
                assert (k, b) in kept


def test_values_are_grouped_by_block_in_their_order():
    table = pad_by_block(np.array([1, 0, 1, 1]), np.array([5.0, 6.0, 7.0, 8.0]), 3, -1.0)
    assert table.tolist() == [[6.0, -1.0, -1.0], [5.0, 7.0, 8.0], [-1.0, -1.0, -1.0]]


@pytest.mark.parametrize("seed", range(5))
def test_pruned_pairs_hold_the_cheapest_assignment_at_any_deadline(seed):
    instance = check_instance(*draw(np.random.default_rng(seed), 60, 4))
    near = prune(instance)
    for deadline in (0.5, 2.0, 8.0, 100.0):
        every = np.arange(instance.devices)[:, None]
        need = least_bandwidths(deadline, instance.compute, instance.bits, every, instance.link)
        dense = np.where(instance.fits & np.isfinite(need), need, 1e15)
        expected = dense[linear_sum_assignment(dense)].sum()
        hertz = least_bandwidths(deadline, near.seconds, instance.bits[:, None], near.device, instance.link)
        result = cheapest_assignment(np.where(np.isfinite(hertz), hertz, 1e15), near.device)
        assert result is not None
        assert min(result[1], 1e15) == pytest.approx(min(expected, 1e15))


@pytest.mark.parametrize("seed", range(5))
def test_cheaper_pairs_are_those_that_were_missing(seed):
    instance = check_instance(*draw(np.random.default_rng(seed), 60, 4))
    near, deadline = cheapest_at_equal_shares(instance), 20.0
    need = least_bandwidths(deadline, near.seconds, instance.bits[:, None], near.device, instance.link)
    marks = np.sort(need, axis=1)[:, instance.blocks - 1]
    missing = cheaper_pairs(instance, near, deadline, need)
    added = (
        set() if missing is None else {(k, b) for b, row in enumerate(missing.device.tolist()) for k in row if k >= 0}
    )
    for k in range(instance.devices):
        for b in range(instance.blocks):
            if not instance.fits[k, b] or k in near.device[b]:
                continue
            hertz = least_bandwidths(deadline, instance.compute[k, b], instance.bits[b], k, instance.link)
            if (k, b) in added:
                assert hertz < marks[b]


def test_an_infinite_cost_forbids_a_pair():
    device = np.array([[0, 1], [0, 1]])
    assert cheapest_assignment(np.array([[1.0, np.inf], [1.0, np.inf]]), device) is None
    column, total = cheapest_assignment(np.array([[1.0, 9.0], [2.0, np.inf]]), device)
    assert column.tolist() == [1, 0]
    assert total == 11.0


@pytest.mark.parametrize(
    ("allowed", "device", "devices", "message"),
    [
        ([[True, True], [False, False]], [[0, 1], [0, 1]], 2, "no device can take block 1"),
        ([[True], [True]], [[0], [0]], 1, "2 blocks need as many devices, there are 1"),
        ([[True, False], [True, False]], [[0, 1], [0, 1]], 2, "is needed for another block"),
    ],
)
def test_blocks_without_a_device(allowed, device, devices, message):
    with pytest.raises(InfeasiblePlan, match=message):
        raise_if_unmatched(np.array(allowed), np.array(device), devices)


def test_a_full_matching_raises_nothing():
    raise_if_unmatched(np.array([[True, False], [False, True]]), np.array([[0, 1], [0, 1]]), 2)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(TaskEdgeError, match=r"pip install 'taskedge\[plan\]'"):
        import_scipy("optimize")
