"""Joint allocation of blocks and bandwidth by dual ascent (LoLa DEFT, arXiv 2407.09873).

The Lagrangian of ``min T`` s.t. every block ends by T and the band holds, with weights ``lambda`` of the blocks
(on the simplex) and a price ``mu`` of the band, is

    sum_b [ lambda_b * (compute + bits_b / rate(w_b)) + mu * w_b ] - mu * bandwidth .

Its minimum splits: the best w of a pair is known (closed form for a linear rate in the paper; a scalar equation for
Shannon's, ours), and the blocks are then dealt out by the Hungarian method. Every such minimum is a lower bound of the
latency (weak duality). The weights rise where a block is late and the price follows demand. From every iteration a
plan is recovered: its assignment, with the band split at its best. The best plan and the best bound are kept.
The update rules are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.candidates import Candidates, cheapest_assignment, prune
from taskedge.planning.links import Floats, Ints, Link
from taskedge.planning.solution import Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.exact import evaluate, first_assignment, soonest

MAX_ITERATIONS = 300
PATIENCE = 80  # iterations without a better plan
TOLERANCE = 1e-6  # relative gap between plan and bound that ends the ascent
FIRST_STEP = 1.0


@SOLVERS.register("joint")
def allocate_jointly(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> JointPlan:
    """A plan near the optimum and a lower bound that certifies it.

    Args and Raises: as :func:`taskedge.planning.solve_exactly`.

    Returns:
        The plan; ``stopped`` is ``"closed"`` (bound met), ``"stalled"`` (no better plan for 80 iterations) or
        ``"cap"`` (``max_iterations``).
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    near = prune(instance)
    blocks = instance.blocks
    column = first_assignment(instance, near)
    latency, share = evaluate(instance, near, column)
    bound, seen, best_at, iteration = soonest(instance, near), {column.tobytes()}, 0, 0
    weight = np.full(blocks, 1.0 / blocks)
    price = max(latency, 1e-300) / bandwidth
    stopped = "cap"
    while iteration < max_iterations:
        if latency - bound <= TOLERANCE * latency:
            stopped = "closed"
            break
        if iteration - best_at >= PATIENCE:
            stopped = "stalled"
            break
        iteration += 1
        chosen, finish, demand, dual = _minimise(instance, near, weight, price)
        bound = max(bound, dual * (1 - 1e-12))
        if chosen.tobytes() not in seen:
            seen.add(chosen.tobytes())
            then, its_share = evaluate(instance, near, chosen)
            if then < latency:
                latency, share, column, best_at = then, its_share, chosen, iteration
        step = FIRST_STEP / np.sqrt(iteration)
        weight = _reweight(weight, finish, step)
        price *= float(np.clip(demand / bandwidth, 1e-3, 1e3)) ** (2 * step)
    device = near.device[np.arange(blocks), column]
    return JointPlan(device, share, latency, min(bound, latency), iteration, stopped)


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
