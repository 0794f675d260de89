"""Baselines that plans are compared with.

Each baseline is naive in one respect and optimal in all others, so that comparisons do not flatter a plan: ``random``,
``greedy`` and ``hungarian`` assign blocks naively but split the band optimally; ``equal`` assigns blocks optimally but
splits the band equally; ``one-device`` and ``fedavg`` do not split the model.

Source: this project; the kinds follow arXiv 2407.09873.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import share_bandwidth
from taskedge.planning.link_models import Bools, Floats, Ints, Link
from taskedge.planning.problem import (
    Assignment,
    InfeasiblePlan,
    Instance,
    JointPlan,
    check_instance,
    upload_seconds,
)
from taskedge.planning.pruning import Candidates, cheapest_assignment, raise_if_unmatched
from taskedge.planning.solvers import SOLVERS
from taskedge.planning.solvers.crunch import equal_share_latency, match_blocks

MAX_ATTEMPTS = 20
"""Random assignments, block by block, that may end without a device before one is drawn by the Hungarian method."""


@SOLVERS.register("random")
def place_randomly(
    compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float, *, seed: int = 0
) -> JointPlan:
    """Assign blocks, deepest first, to random free devices that can hold them; then split the band optimally."""
    instance = check_instance(compute, fits, bits, link, bandwidth)
    rng = np.random.default_rng(seed)
    usable = _usable(instance)
    for _ in range(MAX_ATTEMPTS):
        device = _assign_in_order(np.where(usable, rng.random(usable.shape), np.inf))
        if device is not None:
            return _with_best_split(instance, device)
    return _with_best_split(instance, _assign(instance, np.where(usable, rng.random(usable.shape), np.inf)))


@SOLVERS.register("greedy")
def place_greedily(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> JointPlan:
    """Assign blocks, deepest first, to the free device that finishes first at equal shares; then split the band.

    If ``fits`` is not nested, a block can be left without a device. The result is then that of ``hungarian``.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    cost = np.where(instance.fits, equal_share_latency(instance), np.inf)
    device = _assign_in_order(cost)
    return _with_best_split(instance, _assign(instance, cost) if device is None else device)


@SOLVERS.register("hungarian")
def minimize_sum(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> JointPlan:
    """Minimize the *sum* of latencies at equal shares instead of the maximum; then split the band optimally."""
    instance = check_instance(compute, fits, bits, link, bandwidth)
    cost = np.where(instance.fits, equal_share_latency(instance), np.inf)
    return _with_best_split(instance, _assign(instance, cost))


@SOLVERS.register("one-device")
def use_one_device(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> JointPlan:
    """Use the single device that finishes all blocks first, with the whole band."""
    instance = check_instance(compute, fits, bits, link, bandwidth)
    able = _able_to_take_all(instance)
    upload = upload_seconds(link, able, instance.bits.sum(), bandwidth)
    seconds = instance.compute[able].max(axis=1) + upload
    best = int(np.argmin(seconds))
    if not np.isfinite(seconds[best]):
        raise InfeasiblePlan(instance.blocks - 1, 1, "no device that holds all blocks can reach the server")
    part = _shares_of_blocks(instance, float(bandwidth))
    return JointPlan(np.full(instance.blocks, able[best]), part, float(seconds[best]), 0.0)


@SOLVERS.register("fedavg")
def use_every_device(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> JointPlan:
    """FedAvg: every device that can hold all blocks trains and sends them all, with the optimal split of the band.

    ``device_of_block`` names the first device, ``replicas`` the others. Devices that cannot send are left out.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    able = _able_to_take_all(instance)
    total = np.full(able.size, instance.bits.sum())
    able = able[np.isfinite(upload_seconds(link, able, total, bandwidth / able.size))]
    if not able.size:
        raise InfeasiblePlan(instance.blocks - 1, 1, "no device that holds all blocks can reach the server")
    latency, share = share_bandwidth(instance.compute[able].max(axis=1), total[: able.size], able, link, bandwidth)
    blocks = tuple(range(instance.blocks))
    others = tuple(Assignment(int(k), blocks, float(w)) for k, w in zip(able[1:], share[1:], strict=True))
    part = _shares_of_blocks(instance, float(share[0]))
    return JointPlan(np.full(instance.blocks, able[0]), part, latency, 0.0, replicas=others)


@SOLVERS.register("equal")
def match_then_share_equally(
    compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float
) -> JointPlan:
    """Split the band equally, with the best matching at these shares (CRUNCH)."""
    instance = check_instance(compute, fits, bits, link, bandwidth)
    matching = match_blocks(equal_share_latency(instance), instance.fits)
    share = np.full(instance.blocks, instance.bandwidth / instance.blocks)
    return JointPlan(matching.device_of_block, share, matching.latency, 0.0)


def _usable(instance: Instance) -> Bools:
    """Return the ``[K, L]`` pairs that can finish."""
    reaches = np.isfinite(upload_seconds(instance.link, np.arange(instance.devices)[:, None], instance.bits, np.inf))
    return np.asarray(instance.fits & np.isfinite(instance.compute) & reaches)


def _assign_in_order(cost: Floats) -> Ints | None:
    """Give each block, deepest first, its cheapest free device. Return None if a block finds none."""
    cost = cost.T.copy()  # (blocks, devices)
    device = np.zeros(cost.shape[0], dtype=np.intp)
    for block in reversed(range(cost.shape[0])):
        device[block] = np.argmin(cost[block])
        if not np.isfinite(cost[block, device[block]]):
            return None
        cost[:, device[block]] = np.inf
    return device


def _assign(instance: Instance, cost: Floats) -> Ints:
    """Return the device of every block at the least total ``cost[K, L]``, or raise InfeasiblePlan."""
    near = Candidates(np.tile(np.arange(instance.devices), (instance.blocks, 1)), cost.T)
    assignment = cheapest_assignment(near.seconds, near.device)
    if assignment is None:
        raise_if_unmatched(np.isfinite(near.seconds), near.device, instance.devices)
        raise AssertionError("a matching exists, so the assignment is finite")
    return assignment[0]


def _with_best_split(instance: Instance, device: Ints) -> JointPlan:
    """Return the plan of an assignment ``device[L]`` with the optimal split of the band."""
    seconds = instance.compute[device, np.arange(instance.blocks)]
    latency, share = share_bandwidth(seconds, instance.bits, device, instance.link, instance.bandwidth)
    return JointPlan(device, share, latency, 0.0)


def _able_to_take_all(instance: Instance) -> Ints:
    """Return the devices that can hold all blocks, or raise InfeasiblePlan."""
    usable = instance.fits & np.isfinite(instance.compute)
    able = np.flatnonzero(usable.all(axis=1))
    if not able.size:
        deepest = int(np.argmin(usable.sum(axis=0)))
        raise InfeasiblePlan(deepest, 1, f"no device holds all {instance.blocks} blocks at once")
    return able


def _shares_of_blocks(instance: Instance, bandwidth: float) -> Floats:
    """Return the band of one device, split in proportion to the payloads of its blocks."""
    total = instance.bits.sum()
    parts = instance.bits / total if total > 0 else np.full(instance.blocks, 1 / instance.blocks)
    return np.asarray(bandwidth * parts)
