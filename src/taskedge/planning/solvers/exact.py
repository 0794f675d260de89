"""The optimal plan: which device takes which blocks with which share of the band.

Devices may be idle, and a device may take several blocks. So a further device, more memory, a wider band or more power
never make the optimum slower: every plan of before is still one. This class contains bin packing, and is hard in
general. If the problem is small enough, :mod:`taskedge.planning.subset_search` improves the plan of a short search
until it is proved. Beyond that size the plan is that of :mod:`taskedge.planning.solvers.several`. It is optimal if it
meets its lower bound; else it has a gap, and says so.

Source: this project.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from taskedge.planning.link_models import Link
from taskedge.planning.problem import BlockMemory, JointPlan, check_instance
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.several import MAX_DEVICES, RESTARTS, search_several
from taskedge.planning.subset_search import can_prove, prove

MAX_STEPS = 200
"""Deadlines at which the proof may find a better plan. A few are usual."""

QUICK_PROOF = 2_000_000
"""Steps ``K 3^L`` of a proof that is faster than a descent of the search."""


@SOLVERS.register("exact")
def solve_exactly(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    memory: BlockMemory | None = None,
    copy_of: ArrayLike | None = None,
    spread_slack: float = 0.0,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
) -> JointPlan:
    """Return the plan of least latency: to a relative precision of 1e-9 if proved, else with its gap.

    Args:
        compute: ``[K, L]`` seconds before the upload (download and computation); column b is the block at depth b + 1.
        fits: ``[K, L]`` bool, whether the device can hold the block.
        bits: ``[L]`` upload per block.
        link: the uplinks of the K devices.
        bandwidth: Hz of the shared band.
        memory: of several blocks on a device. None if all blocks that fit one by one fit together.
        copy_of: ``[L]`` a device takes at most one of the columns with the same number. None: no such limit.
        spread_slack: fraction by which the plan may be slower so that more devices take part.
        seed: seed of the search.
        max_steps: limit of the proof.

    Returns:
        The plan. ``stopped`` is ``"optimal"`` if it was proved over all plans; ``"closed"`` if it is within 1e-6 of
        ``lower_bound``; ``"heuristic"`` if neither, which can happen where :func:`can_prove` is false, beyond
        ``MAX_DEVICES`` devices, or if ``max_steps`` is reached; ``"spread"`` if it is slower for more devices, and
        ``lower_bound`` is that of the plan before.

    Raises:
        InfeasiblePlan: no plan exists, or (where none can be proved) none was found.
        InputError: wrong shapes, negative or NaN figures.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth, memory, copy_of)
    provable = can_prove(instance.devices, instance.blocks) and instance.devices <= MAX_DEVICES
    quick = provable and instance.devices * 3.0**instance.blocks <= QUICK_PROOF
    found = search_several(instance, RESTARTS, seed, "start" if quick else "descend" if provable else "full")
    proved = False
    if provable:
        found.assignment, steps, proved = prove(found.search, found.assignment, max_steps)
        found.steps += steps
    return found.plan(proved, spread_slack)
