"""The optimal plan with a device of its own for each block.

This class is polynomial. For a deadline T every pair has a least bandwidth. T is feasible if and only if the assignment
of least total bandwidth stays within the band, which one linear assignment decides. Two kinds of step approach the
least feasible T:

* *descent*: the assignment at T, with the band split optimally, ends at some T' <= T; continue just below T'.
  This is Newton's method on the lower envelope of the assignments' curves, and takes few steps;
* *bisection* whenever a descent did not halve the bracket, so the number of steps is bounded.

Both run on few candidates per block. At the end, one pass over the whole table looks for pairs that are among the L
cheapest of their block just below the latency. Such pairs join the candidates, and the search continues. So the result
is proved for the whole fleet: just below it (relative ``TOLERANCE``) the band is not enough.

Source: this project.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import least_bandwidths, share_bandwidth
from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.pruning import (
    Candidates,
    cheapest_assignment,
    cheapest_at_equal_shares,
    raise_if_unmatched,
    with_missing,
)
from taskedge.planning.solvers import SOLVERS

TOLERANCE = 1e-10
"""Relative precision of the latency."""

MAX_STEPS = 200
"""Bisection alone would need about 100 steps from a bracket of 1e20 : 1."""


@SOLVERS.register("one-each")
def solve_one_each(
    compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float, *, max_steps: int = MAX_STEPS
) -> JointPlan:
    """Return the plan of least latency with one block a device, to a relative precision of 1e-10.

    Args:
        compute: ``[K, L]`` seconds before the upload (download and computation); column b is the block at depth b + 1.
        fits: ``[K, L]`` bool, whether the device can hold the block.
        bits: ``[L]`` upload per block.
        link: the uplinks of the K devices.
        bandwidth: Hz of the shared band.
        max_steps: limit of the search.

    Returns:
        The plan. ``stopped`` is ``"optimal"``, or ``"cap"`` if the search reached ``max_steps``; then ``lower_bound``
        is 0.

    Raises:
        InfeasiblePlan: not every block can have its own device.
        InputError: wrong shapes, negative or NaN figures.
    """
    return search_one_each(check_instance(compute, fits, bits, link, bandwidth), max_steps)[0]


def search_one_each(instance: Instance, max_steps: int = MAX_STEPS) -> tuple[JointPlan, Candidates]:
    """Return the plan of :func:`solve_one_each` and the candidates that prove it."""
    near = cheapest_at_equal_shares(instance)
    column = first_assignment(instance, near)
    latency, share = evaluate(instance, near, column)
    low, steps, descend, proved = 0.0, 0, True, False
    while steps < max_steps:
        steps += 1
        if latency - low <= TOLERANCE * latency:
            near, proved = with_missing(instance, near, low)
            if proved:
                break
            low = 0.0  # the bound was valid for the candidates only
        deadline = latency * (1 - 0.5 * TOLERANCE) if descend else 0.5 * (low + latency)
        better = assignment_within(instance, near, deadline)
        if better is None:
            low, descend = deadline, True
            continue
        before = latency - low
        new_latency, new_share = evaluate(instance, near, better)
        if new_latency < latency:
            latency, share, column = new_latency, new_share, better
        descend = not descend or latency - low < 0.5 * before
    device = near.device[np.arange(instance.blocks), column]
    plan = JointPlan(device, share, latency, latency if proved else 0.0, steps, "optimal" if proved else "cap")
    return plan, near


def first_assignment(instance: Instance, near: Candidates) -> Ints:
    """Return ``column[L]`` with the least sum of latencies at equal shares, or raise InfeasiblePlan."""
    share = instance.bandwidth / instance.blocks
    upload = upload_seconds(instance.link, near.device, instance.bits[:, None], share)
    assignment = cheapest_assignment(near.seconds + upload, near.device)
    if assignment is None:
        raise_if_unmatched(np.isfinite(near.seconds + upload), near.device, instance.devices)
        raise AssertionError("a matching exists, so the assignment is finite")
    return assignment[0]


def evaluate(instance: Instance, near: Candidates, column: Ints) -> tuple[float, Floats]:
    """Return latency and ``[L]`` Hz of an assignment with the optimal split of the band."""
    row = np.arange(instance.blocks)
    device, seconds = near.device[row, column], near.seconds[row, column]
    return share_bandwidth(seconds, instance.bits, device, instance.link, instance.bandwidth)


def assignment_within(instance: Instance, near: Candidates, deadline: float) -> Ints | None:
    """Return an assignment that meets the deadline within the band, or None if there is none."""
    need = least_bandwidths(deadline, near.seconds, instance.bits[:, None], near.device, instance.link)
    need = np.where(need <= instance.bandwidth, need, np.inf)
    if need.min(axis=1).sum() > instance.bandwidth:  # not even if devices could be shared
        return None
    assignment = cheapest_assignment(need, near.device)
    if assignment is None or assignment[1] > instance.bandwidth:
        return None
    return assignment[0]
