"""The cost of one pass for all tasks, against counting by hand; the hinge; closing gates to a target."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from torch import nn

from taskedge.errors import InputError
from taskedge.training.many.trunk_cost import TrunkCost

COST = TrunkCost(("b.0", "b.1", "b.2"), (10, 20, 30))


def by_hand(departures: tuple[int, ...]) -> float:
    """Count the passes of each block: one for the trunk if a task is in it, one for each task that has left."""
    total = 0
    for block, products in enumerate(COST.products):
        left = sum(at <= block for at in departures)
        total += products * (left + (left < len(departures)))
    return total / sum(COST.products)


def test_the_cost_is_that_of_counting_for_every_departure_of_three_tasks() -> None:
    for departures in itertools.product(range(4), repeat=3):
        assert COST.of_departures(departures) == pytest.approx(by_hand(departures))
    assert COST.of_departures([3, 3, 3]) == 1, "gates 0: one network with three heads"
    assert COST.of_departures([0, 0, 0]) == 3, "gates 1: three networks"


def test_a_task_leaves_at_its_first_open_gate() -> None:
    gates = torch.tensor([[False, True, False], [False, False, False], [True, True, True]])
    assert COST.departures(gates) == [1, 3, 0]
    assert COST.departures_of_names([["b.1.x", "b.2.y"], [], ["b.0.x"]]) == [1, 3, 0]
    with pytest.raises(InputError, match="in none of the blocks"):
        COST.departures_of_names([["pooler"]])


def test_the_soft_cost_is_the_hard_one_where_gates_are_certain() -> None:
    for departures in itertools.product(range(4), repeat=2):
        logits = torch.full((2, 3), -50.0, dtype=torch.float64)
        for task, at in enumerate(departures):
            logits[task, at:] = 50.0
        assert float(COST.soft(logits)) == pytest.approx(COST.of_departures(departures))


def test_the_soft_cost_is_the_mean_over_independent_gates() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chance = logits.sigmoid()
    mean = 0.0
    for bits in itertools.product([0, 1], repeat=6):
        gates = torch.tensor(bits).view(2, 3)
        weight = float(torch.where(gates == 1, chance, 1 - chance).prod())
        mean += weight * COST.of_departures(COST.departures(gates == 1))
    assert float(COST.soft(logits)) == pytest.approx(mean)


def test_the_hinge_is_zero_at_or_below_the_target_and_pushes_above_it() -> None:
    logits = torch.full((2, 3), 0.5, requires_grad=True)
    at_target = COST.hinge(logits, 2.0)
    at_target.backward()
    assert float(at_target.detach()) == 0
    assert not logits.grad.any()  # type: ignore[union-attr]
    above = COST.hinge(logits, 1.2)
    above.backward()
    assert float(above.detach()) == pytest.approx(0.8)
    assert (logits.grad[:, 0] > 0).all(), "an open first gate costs most"  # type: ignore[index]


@pytest.mark.parametrize("target", [1.0, 1.3, 1.5, 1.9, 2.0])
def test_gates_close_until_the_cost_is_at_most_the_target(target) -> None:
    for seed in range(20):
        logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        gates, closed = COST.closed_to(logits, target)
        assert COST.of_departures(COST.departures(gates)) <= target
        assert closed == int(((logits > 0) & ~gates).sum())
        if COST.of_departures(COST.departures(logits > 0)) <= target:
            assert closed == 0


def test_costs_of_a_model_are_the_sizes_of_its_linears() -> None:
    cost = TrunkCost.of_model(tiny.bert())
    assert len(cost.names) == 2
    assert cost.products == (4 * 16 * 16 + 2 * 16 * 32,) * 2
    with pytest.raises(InputError, match="no repeated blocks"):
        TrunkCost.of_model(nn.Sequential(nn.Linear(2, 2)))
