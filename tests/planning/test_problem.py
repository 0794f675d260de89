"""Checked arguments, plans as assignments, and the seconds of a plan."""

from __future__ import annotations

import numpy as np
import pytest

from taskedge.errors import InputError
from taskedge.planning.link_models import FixedRateLink
from taskedge.planning.problem import (
    Assignment,
    InfeasiblePlan,
    JointPlan,
    check_instance,
    check_table,
    finish_seconds,
    upload_seconds,
)

LINK = FixedRateLink(np.array([10.0, 20.0]))


def test_every_fault_is_named_at_once():
    with pytest.raises(InputError) as caught:
        check_instance(np.array([[1.0, np.nan]]), np.ones((2, 2), bool), [1.0, -1.0, 2.0], LINK, 0.0)
    text = str(caught.value)
    for part in (
        "fits must have the shape of compute",
        "bits must hold one figure per block, shape (2,), not (3,)",
        "the link serves 2 devices, compute has 1 rows",
        "bits must be finite and not negative; block 1 has -1.0",
        "bandwidth must be a positive number of Hz, not 0.0",
    ):
        assert part in text
    with pytest.raises(InputError, match="compute must not be negative or NaN; device 0, block 1 has nan"):
        check_instance(np.array([[1.0, np.nan]]), np.ones((1, 2), bool), [1.0, 1.0], LINK, 1.0)


def test_a_table_is_scanned_only_if_wanted():
    table = np.array([[-1.0]])
    assert check_table("latency", table, [[True]], scan=False)[2] == []
    assert "negative" in check_table("latency", table, [[True]])[2][0]
    assert "at least one of each" in check_table("latency", np.zeros((0, 2)), np.zeros((0, 2)))[2][0]


def test_assignments_are_sorted_by_device_with_replicas_last():
    plan = JointPlan(np.array([1, 0, 1]), np.array([2.0, 3.0, 4.0]), 9.0, 8.1, replicas=(Assignment(2, (0,), 1.0),))
    assert plan.assignments() == [Assignment(0, (1,), 3.0), Assignment(1, (0, 2), 6.0), Assignment(2, (0,), 1.0)]
    assert plan.gap == pytest.approx(0.1)
    assert JointPlan(np.array([0]), np.array([1.0]), 0.0, 0.0).gap == 0.0


def test_a_device_computes_its_slowest_block_and_sends_all_of_them():
    plan = JointPlan(np.array([0, 0, 1]), np.zeros(3), 0.0, 0.0)
    compute = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert finish_seconds(plan, compute, [10.0, 20.0, 20.0], LINK).tolist() == [2 + 3, 2 + 3, 3 + 1]


def test_uploads_of_nothing_and_at_no_rate():
    link = FixedRateLink(np.array([0.0, 4.0]))
    assert upload_seconds(link, [0, 0, 1], [0.0, 1.0, 2.0], 0.0).tolist() == [0.0, np.inf, 0.5]


def test_an_infeasible_plan_has_an_exit_code():
    error = InfeasiblePlan(np.intp(2), np.intp(1), "no")
    assert (error.block, error.shortfall, error.exit_code, str(error)) == (2, 1, 3, "no")
