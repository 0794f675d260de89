"""Joint allocation of blocks and bandwidth by dual ascent: the method of LoLa DEFT, one block a device.

The Lagrangian of ``min T`` s.t. every block ends by T and the band holds, with weights ``lambda`` of the blocks
(on the simplex, which removes T) and a price ``mu`` of the band, is

    q(lambda, mu) = min  sum_b [ lambda_b * (compute + bits_b / rate(w_b)) + mu * w_b ] - mu * bandwidth .

*Minimization* separates: the best w of each pair is a scalar problem, and the Hungarian method then assigns the blocks.
w is between what the pair needs to be as fast as the first plan, and the whole band; this bounds the subgradients.
*Ascent* is the projected subgradient method on the concave q. A subgradient is the finish
seconds of every block in lambda, and the demand minus the band in mu. In units of the first plan's latency and of the
band, step n has the length ``FIRST_STEP / sqrt(n)``; lambda is projected onto the simplex and mu onto the numbers above
0. Step lengths that fall to 0 and have an infinite sum make the best q converge to the maximum of q. *Recovery*: the
assignment of each step gets the optimal split of the band. The best plan is kept; the best q is its lower bound.

The maximum of q can be below the optimum, since q mixes assignments and a plan cannot. The optimum itself is
polynomial, see :mod:`taskedge.planning.solvers.one_each`.

Source: LoLa DEFT (arXiv 2407.09873): the split of the Lagrangian, and the closed form of w for a linear rate. This
project: the scalar equation for Shannon's rate, and the step rule, which could not be read in the paper.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.pruning import Candidates, cheapest_assignment, prune
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.exact import solve_exactly
from taskedge.planning.solvers.one_each import evaluate, first_assignment

MAX_ITERATIONS = 300

TOLERANCE = 1e-6
"""Relative gap between plan and bound that ends the ascent."""

FIRST_STEP = 0.3
"""Length of the first step of (lambda, mu), where lambda sums to 1 and mu is near 1."""

MIN_PRICE = 1e-9
"""Least price, in the latency of the first plan per band. At 0 every block would take the whole band."""


@SOLVERS.register("dual-ascent")
def ascend_dual(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    max_iterations: int = MAX_ITERATIONS,
) -> JointPlan:
    """Return the best plan of the ascent, and its lower bound.

    Args:
        compute, fits, bits, link, bandwidth: as for :func:`taskedge.planning.solve_one_each`.
        max_iterations: subgradient steps.

    Returns:
        The plan. ``stopped`` is ``"closed"`` (bound met) or ``"cap"`` (``max_iterations``).

    Raises:
        InfeasiblePlan, InputError: as for :func:`taskedge.planning.solve_one_each`.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    near = prune(instance)
    column = first_assignment(instance, near)
    latency, share = evaluate(instance, near, column)
    unit = max(latency, 1e-300)
    least = least_bandwidths(unit * (1 + 1e-9), near.seconds, instance.bits[:, None], near.device, link)
    weight, price, bound = np.full(instance.blocks, 1.0 / instance.blocks), 1.0, 0.0
    tried = {column.tobytes()}
    iteration, stopped = 0, "cap"
    while iteration < max_iterations:
        iteration += 1
        chosen, finish, demand, dual = _minimize_lagrangian(instance, near, least, weight, price * unit / bandwidth)
        bound = max(bound, dual * (1 - 1e-9))
        if chosen.tobytes() not in tried:
            tried.add(chosen.tobytes())
            new_latency, new_share = evaluate(instance, near, chosen)
            if new_latency < latency:
                column, latency, share = chosen, new_latency, new_share
        if latency - bound <= TOLERANCE * latency:
            stopped = "closed"
            break
        subgradient = np.append(finish / unit, demand / bandwidth - 1)
        step = FIRST_STEP / np.sqrt(iteration) / max(float(np.linalg.norm(subgradient)), 1e-300)
        weight = project_to_simplex(weight + step * subgradient[:-1])
        price = max(price + step * float(subgradient[-1]), MIN_PRICE)
    device = near.device[np.arange(instance.blocks), column]
    return JointPlan(device, share, latency, min(bound, latency), iteration, stopped)


def allocate_jointly(
    compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float, **ignored: object
) -> JointPlan:
    """Return :func:`taskedge.planning.solve_exactly` of the arguments; the name is deprecated.

    ``reassign`` and ``max_iterations`` have no effect any more.
    """
    also = f" ({', '.join(ignored)} are ignored)" if ignored else ""
    warnings.warn(
        f"allocate_jointly is deprecated and returns what solve_exactly does{also}; the ascent is ascend_dual",
        DeprecationWarning,
        stacklevel=2,
    )
    return solve_exactly(compute, fits, bits, link, bandwidth)


def project_to_simplex(point: Floats) -> Floats:
    """Return the nearest point with entries not below 0 and sum 1.

    Source: Held, Wolfe, Crowder, "Validation of subgradient optimization" (1974).
    """
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, point.size + 1)
    return np.asarray(np.maximum(point - excess[np.flatnonzero(falling > excess)[-1]], 0.0))


def _minimize_lagrangian(
    instance: Instance, near: Candidates, least: Floats, weight: Floats, price: float
) -> tuple[Ints, Floats, float, float]:
    """Minimize the Lagrangian with at least ``least[L, M]`` Hz for each pair.

    Returns:
        ``column[L]``, ``finish[L]`` s, the total Hz, and the minimum in seconds.
    """
    bits, lam = instance.bits[:, None], weight[:, None]
    hertz = instance.link.fair_bandwidth(near.device, bits, lam, price)  # (blocks, candidates)
    hertz = np.minimum(np.maximum(hertz, least), instance.bandwidth)
    seconds = near.seconds + upload_seconds(instance.link, near.device, bits, hertz)
    usable = np.isfinite(seconds) & (least <= instance.bandwidth * (1 + 1e-9))
    cost = np.where(usable, lam * np.where(usable, seconds, 0.0) + price * hertz, np.inf)
    assignment = cheapest_assignment(cost, near.device)
    assert assignment is not None  # the first plan has finite costs
    column, total = assignment
    row = np.arange(instance.blocks)
    return column, seconds[row, column], float(hertz[row, column].sum()), total - price * instance.bandwidth
