"""Joint allocation of blocks and bandwidth by dual ascent (LoLa DEFT, arXiv 2407.09873).

The Lagrangian of ``min T`` s.t. every block ends by T and the band holds, with weights ``lambda`` of the blocks
(on the simplex) and a price ``mu`` of the band, is

    sum_b [ lambda_b * (compute + bits_b / rate(w_b)) + mu * w_b ] - mu * bandwidth .

Its minimum splits: the best w of a pair is known (closed form for a linear rate in the paper; a scalar equation for
Shannon's, ours), and the blocks are then dealt out by the Hungarian method. Every such minimum is a lower bound of the
latency (weak duality). The weights rise where a block is late and the price follows demand. From every iteration a
plan is recovered: its assignment, with the band split at its best. The best plan and the best bound are kept.

Ours: the update rules; *re-dealing* a better plan, once the band is split, by the least bandwidths that its deadline
asks for (the assignments of the Lagrangian alone can miss the best by some percent: it mixes assignments, a plan
cannot); and the second bound, which gives every block its cheapest device even if it is another block's too.
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
PATIENCE = 50  # iterations without a better plan
TOLERANCE = 1e-6  # relative gap between plan and bound that ends the ascent
FIRST_STEP = 3.0  # of the weights, in relative lateness; falls with the square root of the iteration


@SOLVERS.register("joint")
def allocate_jointly(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    redeal: bool = True,
    max_iterations: int = MAX_ITERATIONS,
) -> JointPlan:
    """A plan near the optimum and a lower bound that certifies it.

    Args and Raises: as :func:`taskedge.planning.solve_exactly`. ``redeal=False`` leaves re-dealing out.

    Returns:
        The plan; ``stopped`` is ``"closed"`` (bound met), ``"stalled"`` (no better plan for 50 iterations) or
        ``"cap"`` (``max_iterations``).
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    near = prune(instance)
    best = _Best(instance, near, first_assignment(instance, near), redeal)
    bound = max(soonest(instance, near), _shared_devices_bound(instance, near, best.latency))
    weight, price = np.full(instance.blocks, 1.0 / instance.blocks), max(best.latency, 1e-300) / bandwidth
    iteration, best_at, stopped = 0, 0, "cap"
    while iteration < max_iterations:
        if best.latency - bound <= TOLERANCE * best.latency:
            stopped = "closed"
            break
        if iteration - best_at >= PATIENCE:
            stopped = "stalled"
            break
        iteration += 1
        chosen, finish, demand, dual = _minimise(instance, near, weight, price)
        bound = max(bound, dual * (1 - 1e-12))
        if best.recover(chosen):
            best_at = iteration
        step = FIRST_STEP / np.sqrt(iteration)
        weight = _reweight(weight, finish, step)
        price *= float(np.clip(demand / bandwidth, 1e-3, 1e3)) ** (2 * step)
    device = near.device[np.arange(instance.blocks), best.column]
    return JointPlan(device, best.share, best.latency, min(bound, best.latency), iteration, stopped)


class _Best:
    """The best plan recovered so far, and the assignments already tried."""

    def __init__(self, instance: Instance, near: Candidates, column: Ints, redeal: bool) -> None:
        self.instance, self.near, self.redeal = instance, near, redeal
        self.column, self.latency, self.share = column, np.inf, np.zeros(instance.blocks)
        self._tried: set[bytes] = set()
        self.recover(column)

    def recover(self, column: Ints | None) -> bool:
        """Splits the band for an assignment and keeps it if it is the best, then re-deals it; whether it was."""
        better = False
        while column is not None and column.tobytes() not in self._tried:
            self._tried.add(column.tobytes())
            latency, share = evaluate(self.instance, self.near, column)
            if latency >= self.latency:
                break
            self.column, self.latency, self.share, better = column, latency, share, True
            column = assignment_within(self.instance, self.near, latency) if self.redeal else None
        return better


def _minimise(instance: Instance, near: Candidates, weight: Floats, price: float) -> tuple[Ints, Floats, float, float]:
    """The Lagrangian's minimiser: ``column[L]``, ``finish[L]`` s, total Hz, and the minimum itself in seconds."""
    bits, lam = instance.bits[:, None], weight[:, None]
    hertz = instance.link.fair_bandwidth(near.device, bits, lam, price)  # (blocks, candidates)
    seconds = near.seconds + upload_seconds(instance.link, near.device, bits, hertz)
    found = cheapest_assignment(lam * seconds + price * hertz, near.device)
    assert found is not None  # the first assignment was finite, and weights are positive
    column, total = found
    row = np.arange(instance.blocks)
    return column, seconds[row, column], float(hertz[row, column].sum()), total - price * instance.bandwidth


def _reweight(weight: Floats, finish: Floats, step: float) -> Floats:
    """Multiplicative ascent on the simplex: late blocks gain weight, none falls to 0."""
    late = finish / max(float(finish.max()), 1e-300)
    weight = weight * np.exp(step * (late - 1))
    weight = np.maximum(weight / weight.sum(), 1e-12)
    return np.asarray(weight / weight.sum())


def _shared_devices_bound(instance: Instance, near: Candidates, latency: float) -> float:
    """Least deadline at which the band would do if a device could serve many blocks, from below."""
    low, high = 0.0, latency
    for _ in range(40):
        middle = 0.5 * (low + high)
        need = least_bandwidths(middle, near.seconds, instance.bits[:, None], near.device, instance.link)
        if need.min(axis=1).sum() > instance.bandwidth:
            low = middle
        else:
            high = middle
    return low
