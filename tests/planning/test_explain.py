"""The explanation of an infeasible problem. Remedies that need whole plans are tested in test_plan."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import device, fleet, table

from taskedge.planning import InfeasiblePlan
from taskedge.planning.explain import explain_infeasible
from taskedge.planning.fleet_costs import fleet_costs, step_bytes
from taskedge.planning.plan import fleet_link

SHAPE = table(activation_bytes=np.full(3, 1e6))
NEED = step_bytes(SHAPE, 16)
"""Bytes of a step at each depth with the batch of two sequences of 8 tokens."""


def explained(*rows, copies=1, together=False) -> InfeasiblePlan:
    loaded = fleet(*rows)
    error = InfeasiblePlan(2, 1, "block 2 finds no device")
    return explain_infeasible(error, loaded, SHAPE, fleet_costs(loaded, SHAPE), fleet_link(loaded), copies, together)


def test_the_closest_device_and_its_missing_megabytes() -> None:
    error = explained(device("small", memory_bytes=NEED[0]), device("big", memory_bytes=NEED[2] - 5e6))
    assert (error.block, error.shortfall) == (2, 1)
    assert "no device can hold block 3 of 3 (counted from the output: layer.0)" in str(error)
    assert f"'big' comes closest and lacks 5 MB of {NEED[2] / 1e6:,.0f} MB" in str(error)


def test_too_few_devices_name_the_one_that_lacks_least() -> None:
    error = explained(device("big"), device("a", memory_bytes=NEED[1] - 2e6), device("b", memory_bytes=NEED[0] / 2))
    assert error.block == 1
    assert "need 2 devices, and only 1 device holds it; 'a' lacks 2 MB for it" in str(error)


def test_copies_multiply_the_devices_that_are_needed() -> None:
    error = explained(device("a"), device("b"), device("c"), copies=2)
    assert "need 4 devices, and only 3 devices hold it; the fleet has 3 in all" in str(error)
    assert "--blocks 1 fits: 3 devices hold the deepest block" in str(error)


def test_a_device_that_is_too_small_at_any_batch() -> None:
    error = explained(device("tiny", memory_bytes=1e8))
    assert "'tiny' cannot hold it at any batch: one sequence with checkpointing takes" in str(error)


def test_devices_that_cannot_send() -> None:
    error = explained(
        device("silent", gain_db=-400.0, transmit_watts=1e-300), device("b"), device("c"),
    )  # fmt: skip
    assert str(error) == "no plan: 'silent' cannot reach the server at all, so block 2 finds no device"


def test_a_reason_that_is_neither_memory_nor_links_stays() -> None:
    error = explained(*(device(name) for name in "abc"))
    assert str(error) == "no plan: block 2 finds no device"
    with pytest.raises(InfeasiblePlan):
        raise error
