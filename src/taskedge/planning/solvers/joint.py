"""Joint allocation of blocks and bandwidth by dual ascent.

The Lagrangian of ``min T`` s.t. every block ends by T and the band holds, with weights ``lambda`` of the blocks
(on the simplex) and a price ``mu`` of the band, is

    sum_b [ lambda_b * (compute + bits_b / rate(w_b)) + mu * w_b ] - mu * bandwidth .

Its minimum separates: the best w of each pair is a scalar problem, and the Hungarian method then assigns the blocks.
Every such minimum is a lower bound of the latency (weak duality). The weight of a late block rises, and the price
follows demand. Each iteration gives a plan: its assignment, with the band split optimally. The best plan and the best
bound are kept.

*Reassignment* improves a plan once its band is split: the blocks are assigned again by the least bandwidths at its
latency. The assignments of the Lagrangian alone can miss the optimum by some percent, because it mixes assignments and
a plan cannot. A second bound gives every block its cheapest device, even if another block has that device as well.

Source: LoLa DEFT (arXiv 2407.09873), with the closed form of w for a linear rate. This project: the scalar equation for
Shannon's rate, the update rules, reassignment, and the second bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.pruning import Candidates, cheapest_assignment, prune
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.exact import assignment_within, evaluate, first_assignment, soonest

MAX_ITERATIONS = 300

PATIENCE_ITERATIONS = 50
"""Iterations without a better plan that end the ascent."""

TOLERANCE = 1e-6
"""Relative gap between plan and bound that ends the ascent."""

FIRST_STEP = 3.0
"""First step of the weights, in relative lateness. It falls with the square root of the iteration."""


@SOLVERS.register("joint")
def allocate_jointly(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    reassign: bool = True,
    max_iterations: int = MAX_ITERATIONS,
) -> JointPlan:
    """Return a plan near the optimum, and a lower bound that certifies it.

    Args:
        compute, fits, bits, link, bandwidth: as for :func:`taskedge.planning.solve_exactly`.
        reassign: improve plans by reassignment.
        max_iterations: limit of the ascent.

    Returns:
        The plan. ``stopped`` is ``"closed"`` (bound met), ``"stalled"`` (no better plan for 50 iterations) or
        ``"cap"`` (``max_iterations``).

    Raises:
        InfeasiblePlan, InputError: as for :func:`taskedge.planning.solve_exactly`.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    near = prune(instance)
    best = _BestPlan(instance, near, first_assignment(instance, near), reassign)
    bound = max(soonest(instance, near), _shared_devices_bound(instance, near, best.latency))
    weight, price = np.full(instance.blocks, 1.0 / instance.blocks), max(best.latency, 1e-300) / bandwidth
    iteration, best_iteration = 0, 0
    stopped = "cap"
    while iteration < max_iterations:
        if best.latency - bound <= TOLERANCE * best.latency:
            stopped = "closed"
            break
        if iteration - best_iteration >= PATIENCE_ITERATIONS:
            stopped = "stalled"
            break
        iteration += 1
        chosen, finish, demand, dual = _minimize_lagrangian(instance, near, weight, price)
        bound = max(bound, dual * (1 - 1e-12))
        if best.recover(chosen):
            best_iteration = iteration
        step = FIRST_STEP / np.sqrt(iteration)
        weight = _reweight(weight, finish, step)
        price *= float(np.clip(demand / bandwidth, 1e-3, 1e3)) ** (2 * step)
    device = near.device[np.arange(instance.blocks), best.column]
    return JointPlan(device, best.share, best.latency, min(bound, best.latency), iteration, stopped)


class _BestPlan:
    """The best plan so far, and the assignments that were tried."""

    def __init__(self, instance: Instance, near: Candidates, column: Ints, reassign: bool) -> None:
        self.instance, self.near, self.reassign = instance, near, reassign
        self.column, self.latency, self.share = column, np.inf, np.zeros(instance.blocks)
        self._tried: set[bytes] = set()
        self.recover(column)

    def recover(self, column: Ints | None) -> bool:
        """Try an assignment, and reassign it as long as the plan improves. Return whether it became the best plan."""
        better = False
        while column is not None and column.tobytes() not in self._tried:
            self._tried.add(column.tobytes())
            latency, share = evaluate(self.instance, self.near, column)
            if latency >= self.latency:
                break
            self.column, self.latency, self.share = column, latency, share
            better = True
            column = assignment_within(self.instance, self.near, latency) if self.reassign else None
        return better


def _minimize_lagrangian(
    instance: Instance, near: Candidates, weight: Floats, price: float
) -> tuple[Ints, Floats, float, float]:
    """Minimize the Lagrangian. Return ``column[L]``, ``finish[L]`` s, the total Hz, and the minimum in seconds."""
    bits, lam = instance.bits[:, None], weight[:, None]
    hertz = instance.link.fair_bandwidth(near.device, bits, lam, price)  # (blocks, candidates)
    seconds = near.seconds + upload_seconds(instance.link, near.device, bits, hertz)
    assignment = cheapest_assignment(lam * seconds + price * hertz, near.device)
    assert assignment is not None  # the first assignment was finite, and weights are positive
    column, total = assignment
    row = np.arange(instance.blocks)
    return column, seconds[row, column], float(hertz[row, column].sum()), total - price * instance.bandwidth


def _reweight(weight: Floats, finish: Floats, step: float) -> Floats:
    """Return new weights by multiplicative ascent on the simplex: late blocks gain weight, no weight falls to 0."""
    late = finish / max(float(finish.max()), 1e-300)
    weight = weight * np.exp(step * (late - 1))
    weight = np.maximum(weight / weight.sum(), 1e-12)
    return np.asarray(weight / weight.sum())


def _shared_devices_bound(instance: Instance, near: Candidates, latency: float) -> float:
    """Return a lower bound: the least deadline for which the band is enough if devices may serve several blocks."""
    low, high = 0.0, latency
    for _ in range(40):
        middle = 0.5 * (low + high)
        need = least_bandwidths(middle, near.seconds, instance.bits[:, None], near.device, instance.link)
        if need.min(axis=1).sum() > instance.bandwidth:
            low = middle
        else:
            high = middle
    return low
