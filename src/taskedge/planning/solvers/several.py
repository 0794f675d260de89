"""Plans with any number of blocks on a device, idle devices included: a fast search with a lower bound.

The search starts from several assignments: each block at once on the device that is first with it, the plan with one
block a device, and the best device alone. The best two descend, see :mod:`taskedge.planning.local_search`; restarts
assign some blocks again. The work is bounded by a count and not by a clock, so the same seed gives the same plan on
every machine. The search ends early when the bound is met.

Source: this project.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.link_models import Floats, Ints, Link, SelectedLink
from taskedge.planning.local_search import Search
from taskedge.planning.lower_bounds import every_pair, priced_bound, shared_bound
from taskedge.planning.problem import BlockMemory, InfeasiblePlan, Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.pruning import Candidates
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.one_each import search_one_each
from taskedge.planning.subset_search import any_assignment, can_prove

RESTARTS = 12

MAX_EVALUATED = 250_000
"""Needs that a search computes at most, beyond its first descent: about a second."""

REASSIGNED_SHARE = 0.3
"""Share of the blocks that a restart assigns again, 12 blocks at most."""

TOLERANCE = 1e-6
"""Relative gap between plan and bound that ends the search."""

NOISY_STARTS = 16
"""Random assignments that are tried if memory is so tight that no other start fits."""

MAX_DEVICES = 256
"""Devices of a larger fleet that the search uses: for each block in turn those that finish it first."""


@SOLVERS.register("several")
def allocate_several(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    memory: BlockMemory | None = None,
    copy_of: ArrayLike | None = None,
    spread_slack: float = 0.0,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> JointPlan:
    """Return a good plan in which devices may take any number of blocks, or none.

    Args:
        compute, fits, bits, link, bandwidth: as for :func:`taskedge.planning.solve_one_each`, for any number of
            devices.
        memory: of several blocks on a device. None if all blocks that fit one by one fit together.
        copy_of: ``[L]`` a device takes at most one of the columns with the same number. None: no such limit.
        spread_slack: fraction by which the plan may be slower so that more devices take part.
        restarts: restarts of the search.
        seed: seed of the restarts.

    Returns:
        The plan. ``stopped`` is ``"spread"`` if it is slower for more devices, ``"closed"`` if ``lower_bound`` is met,
        else ``"heuristic"``.

    Raises:
        InfeasiblePlan: no device can take some block, or the search found no plan within the devices' memory.
        InputError: wrong shapes, negative or NaN figures.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth, memory, copy_of)
    return search_several(instance, restarts, seed).plan(slack=spread_slack)


@dataclass
class Found:
    """Result of a search.

    Attributes:
        search: the problem, on the devices that the search used.
        devices: these devices, as rows of the fleet.
        assignment: ``[L]`` rows of ``devices``.
        bound: seconds that no plan on the whole fleet can beat.
        steps: steps of the search.
    """

    search: Search
    devices: Ints
    assignment: Ints
    bound: float
    steps: int

    def plan(self, proved: bool = False, slack: float = 0.0) -> JointPlan:
        """Return the plan, on more devices where ``slack`` allows, with each device's band split by payload."""
        search, best = self.search, self.search.latency(self.assignment)
        assignment = search.spread(self.assignment, slack)
        latency, busy, share = search.split(assignment)
        hertz = np.zeros(search.devices)
        hertz[busy] = share
        payload = search.loads(assignment)[1][assignment]
        with np.errstate(all="ignore"):
            part = np.where(payload > 0, search.bits / payload, 0.0)
        bound = min(best if proved else self.bound, latency)
        met = best - bound <= TOLERANCE * best
        stopped = "optimal" if proved else "closed" if met else "heuristic"
        if latency > best * (1 + TOLERANCE):
            stopped = "spread"
        return JointPlan(self.devices[assignment], hertz[assignment] * part, latency, bound, self.steps, stopped)


def search_several(
    whole: Instance, restarts: int, seed: int, effort: Literal["start", "descend", "full"] = "full"
) -> Found:
    """Search for a plan. See :func:`allocate_several`.

    Args:
        whole: the problem.
        restarts: restarts of the search.
        seed: of the restarts.
        effort: ``start`` returns the best start, ``descend`` the end of its descent; both with the bound 0.
    """
    one_each, near = _one_each(whole)
    devices = _promising(whole, near, one_each)
    instance = whole if devices.size == whole.devices else _select(whole, devices)
    search = Search(instance)
    pool = _pool(search, None if one_each is None else np.searchsorted(devices, one_each))
    if not pool:
        provable = can_prove(instance.devices, instance.blocks)
        found = any_assignment(search) if provable else None
        if found is None:
            how = "no plan exists" if provable else f"{NOISY_STARTS} random assignments found no plan"
            raise InfeasiblePlan(instance.blocks - 1, 1, f"{how} in which the blocks of each device fit it together")
        pool = [found]
    if effort == "start":
        return Found(search, devices, pool[0], 0.0, 0)
    best, steps = search.improve(pool[0])
    if effort == "descend":
        return Found(search, devices, best, 0.0, steps)
    for other in pool[1:2]:
        device, more = search.improve(other)
        steps += more
        best = min(best, device, key=search.latency)
    bound = shared_bound(whole, near, search.latency(best))
    if devices.size == whole.devices:
        bound = priced_bound(instance, bound, search.latency(best))
    limit = search.evaluated + MAX_EVALUATED
    rng = np.random.default_rng(seed)
    share = min(REASSIGNED_SHARE, 12 / instance.blocks)
    for _ in range(restarts if instance.blocks > 1 and search.devices > 1 else 0):
        latency = search.latency(best)
        if search.evaluated >= limit or latency - bound <= TOLERANCE * latency:
            break
        kicked = search.assign(np.where(rng.random(instance.blocks) < share, -1, best), rng)
        if kicked is not None:
            device, more = search.improve(kicked, limit)
            steps += more
            best = min(best, device, key=search.latency)
    return Found(search, devices, best, bound, steps)


def _one_each(instance: Instance) -> tuple[Ints | None, Candidates]:
    """Return the devices of the plan with one block a device, None without one, and candidates for every block."""
    if instance.devices >= instance.blocks:
        try:
            plan, near = search_one_each(instance)
        except InfeasiblePlan:
            pass
        else:
            return plan.device_of_block, near
    return None, every_pair(instance)


def _promising(instance: Instance, near: Candidates, one_each: Ints | None) -> Ints:
    """Return the devices that the search uses: all, or those that finish a block first and those of a plan.

    Uploads have equal shares of the band. A device that cannot send is not used, however fast it computes.
    """
    if instance.devices <= MAX_DEVICES:
        return np.arange(instance.devices)
    chosen = np.zeros(0, dtype=np.intp) if one_each is None else np.unique(one_each)
    share = instance.bandwidth / min(instance.devices, instance.blocks)
    upload = upload_seconds(instance.link, np.maximum(near.device, 0), instance.bits[:, None], share)
    finish = near.seconds + upload
    order = np.argsort(finish, axis=1, kind="stable")
    for rank in range(order.shape[1]):
        if chosen.size >= MAX_DEVICES:
            break
        devices = near.device[np.arange(instance.blocks), order[:, rank]]
        seconds = finish[np.arange(instance.blocks), order[:, rank]]
        chosen = np.union1d(chosen, devices[np.isfinite(seconds) & (devices >= 0)])
    return np.asarray(chosen, dtype=np.intp)


def _select(instance: Instance, devices: Ints) -> Instance:
    memory = instance.memory
    return replace(
        instance,
        compute=instance.compute[devices],
        fits=instance.fits[devices],
        link=SelectedLink(instance.link, devices),
        memory=None if memory is None else memory.select(devices, np.arange(instance.blocks)),
    )


def _pool(search: Search, one_each: Ints | None) -> list[Ints]:
    """Return different assignments that the devices can hold, soonest first."""
    nobody = np.full(search.blocks, -1)
    tried = [one_each, search.assign(nobody), *_alone(search)]
    pool = {device.tobytes(): device for device in tried if device is not None and search.feasible(device)}
    for shift in range(NOISY_STARTS if not pool else 0):  # memory is tight: any assignment that fits
        packed = search.assign(nobody, np.random.default_rng(shift))
        if packed is not None:
            pool[packed.tobytes()] = packed
    return sorted(pool.values(), key=search.latency)


def _alone(search: Search) -> list[Ints]:
    """Return the assignment of all blocks to the device that can take them and is first with them; none if none can."""
    seconds: Floats = search.seconds.max(axis=1)
    whole = upload_seconds(search.link, np.arange(search.devices), search.bits.sum(), search.bandwidth)
    best = int(np.argmin(seconds + whole))
    return [np.full(search.blocks, best, dtype=np.intp)] if np.isfinite(seconds[best] + whole[best]) else []
