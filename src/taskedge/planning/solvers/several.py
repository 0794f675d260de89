"""Fewer devices than blocks: a device takes several. (ours)

A device that takes a set of blocks computes as long as the slowest of them (the deepest, where seconds grow with
depth: one backward pass serves all) and sends the sum of their payloads. Whether a deadline can be met is now a
bin-packing question, so this is a local search. It aims at a deadline a little below the latency at hand and moves a
block to another device, or swaps two blocks, as long as the band needed for that deadline shrinks; a device that would
be late even with the whole band counts as the whole band and its lateness on top, so that late devices are unloaded
step by step. Then the band is split anew; a better plan is kept and the aim lowered. Restarts deal some blocks anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import least_bandwidths, share_bandwidth
from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import InfeasiblePlan, Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.solvers import SOLVERS

RESTARTS = 12
MAX_STEPS = 2000  # of the local search, per restart
AIMS = (0.05, 0.01, 1e-9)  # how far below the latency at hand the search aims, one after the other
KICK = 0.3  # share of the blocks that a restart deals out anew


@SOLVERS.register("several")
def allocate_several(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    *,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> JointPlan:
    """A good plan in which a device may take any number of blocks that each fit it.

    Args and Raises: as :func:`taskedge.planning.solve_exactly`, but any number of devices will do. ``fits`` is asked
    block by block; what a device's blocks need together is the caller's to check.

    Returns:
        The plan (``stopped`` is ``"heuristic"``); ``lower_bound`` is a valid bound for plans of this kind.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    search = _Search(instance)
    rng = np.random.default_rng(seed)
    device, rounds = search.improve(search.deal(np.full(instance.blocks, -1)))
    best, latency = device, search.latency(device)
    for _ in range(restarts if instance.blocks > 1 and search.devices > 1 else 0):
        kicked = np.where(rng.random(instance.blocks) < KICK, -1, best)
        device, more = search.improve(search.deal(kicked, rng))
        rounds += more
        if (then := search.latency(device)) < latency:
            best, latency = device, then
    return search.plan(best, rounds)


class _Search:
    """An instance and the quantities every step of the search needs."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.link, self.bits, self.bandwidth = instance.link, instance.bits, instance.bandwidth
        self.devices, self.blocks = instance.devices, instance.blocks
        every = np.arange(self.devices)
        reaches = np.isfinite(upload_seconds(self.link, every[:, None], self.bits, self.bandwidth))
        self.seconds = np.where(instance.fits & reaches, instance.compute, np.inf)  # (devices, blocks)
        nobody = np.flatnonzero(~np.isfinite(self.seconds).any(axis=0))
        if nobody.size:
            block = int(nobody[-1])
            raise InfeasiblePlan(block, 1, f"no device can take block {block} (depth {block + 1})")

    def members(self, device: Ints) -> Floats:
        """``[K, L]`` 1.0 where the device holds the block."""
        return np.asarray(device[None, :] == np.arange(self.devices)[:, None], dtype=np.float64)

    def loads(self, device: Ints) -> tuple[Floats, Floats]:
        """``[K]`` compute seconds and payload of every device."""
        held = self.members(device)
        return np.where(held > 0, self.seconds, 0.0).max(axis=1), held @ self.bits

    def latency(self, device: Ints) -> float:
        return self.split(device)[0]

    def split(self, device: Ints) -> tuple[float, Ints, Floats]:
        """Latency, the busy devices, and their Hz."""
        seconds, payload = self.loads(device)
        busy = np.unique(device)
        latency, share = share_bandwidth(seconds[busy], payload[busy], busy, self.link, self.bandwidth)
        return latency, busy, share

    def deal(self, device: Ints, rng: np.random.Generator | None = None) -> Ints:
        """Places the blocks marked -1, deepest first, where each ends soonest at an equal share (``rng`` blurs it)."""
        device = device.copy()
        share = self.bandwidth / min(self.devices, self.blocks)
        seconds = np.zeros(self.devices)
        payload = np.zeros(self.devices)
        for block in np.flatnonzero(device >= 0):
            k = device[block]
            seconds[k], payload[k] = max(seconds[k], self.seconds[k, block]), payload[k] + self.bits[block]
        every = np.arange(self.devices)
        for block in np.flatnonzero(device < 0)[::-1]:
            then = np.maximum(seconds, self.seconds[:, block])
            then = then + upload_seconds(self.link, every, payload + self.bits[block], share)
            if rng is not None:
                then = then * rng.uniform(0.5, 1.5, self.devices)
            k = int(np.argmin(then))
            device[block] = k
            seconds[k], payload[k] = max(seconds[k], self.seconds[k, block]), payload[k] + self.bits[block]
        return device

    def improve(self, device: Ints) -> tuple[Ints, int]:
        """Local search until no aim can be reached. Returns the plan and the steps taken."""
        latency, steps = self.latency(device), 0
        for aim in AIMS:
            while steps < MAX_STEPS and latency > 0:
                tried, deadline = device, latency * (1 - aim)
                while steps < MAX_STEPS and (step := self._best_step(tried, deadline)) is not None:
                    tried, steps = step, steps + 1
                if (then := self.latency(tried)) >= latency * (1 - 1e-12):
                    break
                device, latency = tried, then
        return device, steps

    def _best_step(self, device: Ints, deadline: float) -> Ints | None:
        """The neighbour whose band needed at ``deadline`` is least, if less than now."""
        seconds, payload = self.loads(device)
        every, block = np.arange(self.devices), np.arange(self.blocks)
        need = self._need(deadline, seconds, payload, every)
        held = self.members(device)
        # what each device computes without block b: only its own slowest block can change that
        without = np.stack([np.where((held > 0) & (block != b), self.seconds, 0.0).max(axis=1) for b in block], axis=1)
        left = without[device, block], payload[device] - self.bits  # of b's device once b has gone: [L] each

        # moves: block b from its device to k
        there = self._need(
            deadline, np.maximum(seconds[:, None], self.seconds), payload[:, None] + self.bits, every[:, None]
        )
        alone = self._need(deadline, *left, device)
        gain = need[device] + need[:, None] - alone - there  # (devices, blocks)
        gain[device, block] = -np.inf

        # swaps: b to c's device and c to b's
        come = np.maximum(left[0][:, None], self.seconds[device][:, block])  # (b leaves, c comes) on b's device
        after = self._need(deadline, come, left[1][:, None] + self.bits, device[:, None])
        trade = need[device][:, None] + need[device] - after - after.T
        trade[device[:, None] == device] = -np.inf

        best_move, best_trade = np.nanmax(gain, initial=-np.inf), np.nanmax(trade, initial=-np.inf)
        if max(best_move, best_trade) <= 1e-9 * self.bandwidth:
            return None
        device = device.copy()
        if best_move >= best_trade:
            k, b = np.unravel_index(np.nanargmax(gain), gain.shape)
            device[b] = k
        else:
            b, c = np.unravel_index(np.nanargmax(trade), trade.shape)
            device[b], device[c] = device[c], device[b]
        return device

    def _need(self, deadline: float, seconds: Floats, payload: Floats, device: Ints) -> Floats:
        """Hz for the deadline; beyond the whole band, the band and as much again for every deadline of lateness."""
        payload = np.maximum(payload, 0.0)  # a difference of sums may round below 0
        need = least_bandwidths(deadline, seconds, payload, device, self.link)
        finish = seconds + upload_seconds(self.link, device, payload, self.bandwidth)
        late = self.bandwidth * np.maximum(finish / deadline, 1.0)
        return np.where(need <= self.bandwidth, need, late)

    def plan(self, device: Ints, rounds: int) -> JointPlan:
        latency, busy, share = self.split(device)
        _, payload = self.loads(device)
        hertz = np.zeros(self.devices)
        hertz[busy] = share
        with np.errstate(all="ignore"):
            part = np.where(payload[device] > 0, self.bits / payload[device], 0.0)
        return JointPlan(device, hertz[device] * part, latency, min(self.bound(), latency), rounds)

    def bound(self) -> float:
        """Every block alone on its best device with the whole band. What is sent together cannot be sooner."""
        upload = upload_seconds(self.link, np.arange(self.devices)[:, None], self.bits, self.bandwidth)
        return float((self.seconds + upload).min(axis=0).max())
