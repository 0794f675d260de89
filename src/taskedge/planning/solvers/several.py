"""Plans with several blocks on a device, for fewer devices than blocks.

A device with a set of blocks computes as long as the slowest of them (the deepest, if seconds grow with depth: one
backward pass serves all) and sends the sum of their payloads. Feasibility of a deadline is now a bin-packing problem,
so this is a local search. It targets a deadline slightly below the current latency. It moves a block to another device,
or swaps two blocks, as long as the band needed for that deadline shrinks. A device that would be late even with the
whole band counts as the whole band plus its lateness, so late devices are unloaded step by step. Then the band is split
again; a better plan is kept and the target lowered. Restarts assign some blocks again.

Source: this project.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from taskedge.planning.bandwidth import least_bandwidths, share_bandwidth
from taskedge.planning.link_models import Floats, Ints, Link
from taskedge.planning.problem import InfeasiblePlan, Instance, JointPlan, check_instance, upload_seconds
from taskedge.planning.solvers import SOLVERS

RESTARTS = 12

MAX_STEPS = 2000
"""Steps of the local search in each restart."""

TARGET_REDUCTIONS = (0.05, 0.01, 1e-9)
"""Relative distances of the targeted deadline below the current latency, one after the other."""

REASSIGNED_SHARE = 0.3
"""Share of the blocks that a restart assigns again."""


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
    """Return a good plan in which a device may take any number of blocks that each fit it.

    ``fits`` is checked block by block. The caller must check the memory that the blocks of a device need together.

    Args:
        compute, fits, bits, link, bandwidth: as for :func:`taskedge.planning.solve_exactly`, for any number of devices.
        restarts: restarts of the search.
        seed: seed of the restarts.

    Returns:
        The plan (``stopped`` is ``"heuristic"``). ``lower_bound`` is a valid bound for plans of this kind.

    Raises:
        InfeasiblePlan: no device can take some block.
        InputError: wrong shapes, negative or NaN figures.
    """
    instance = check_instance(compute, fits, bits, link, bandwidth)
    search = _Search(instance)
    rng = np.random.default_rng(seed)
    device, rounds = search.improve(search.assign(np.full(instance.blocks, -1)))
    best, latency = device, search.latency(device)
    for _ in range(restarts if instance.blocks > 1 and search.devices > 1 else 0):
        kicked = np.where(rng.random(instance.blocks) < REASSIGNED_SHARE, -1, best)
        device, more = search.improve(search.assign(kicked, rng))
        rounds += more
        new_latency = search.latency(device)
        if new_latency < latency:
            best, latency = device, new_latency
    return search.plan(best, rounds)


class _Search:
    """An instance, and the quantities that every step of the search needs."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.link, self.bits, self.bandwidth = instance.link, instance.bits, instance.bandwidth
        self.devices, self.blocks = instance.devices, instance.blocks
        # restarts come back to the same assignments, so both are kept
        self._latencies: dict[bytes, float] = {}  # by assignment
        self._steps: dict[tuple[bytes, float], Ints | None] = {}  # by assignment and deadline
        every = np.arange(self.devices)
        reaches = np.isfinite(upload_seconds(self.link, every[:, None], self.bits, self.bandwidth))
        self.seconds = np.where(instance.fits & reaches, instance.compute, np.inf)  # (devices, blocks)
        without_device = np.flatnonzero(~np.isfinite(self.seconds).any(axis=0))
        if without_device.size:
            block = int(without_device[-1])
            raise InfeasiblePlan(block, 1, f"no device can take block {block} (depth {block + 1})")

    def members(self, device: Ints) -> Floats:
        """Return ``[K, L]``: 1.0 if the device has the block, else 0.0."""
        return np.asarray(device[None, :] == np.arange(self.devices)[:, None], dtype=np.float64)

    def loads(self, device: Ints) -> tuple[Floats, Floats]:
        """Return ``[K]`` compute seconds and ``[K]`` payload of every device."""
        members = self.members(device)
        return np.where(members > 0, self.seconds, 0.0).max(axis=1), members @ self.bits

    def latency(self, device: Ints) -> float:
        """Return the latency with the optimal split of the band."""
        key = device.tobytes()
        if key not in self._latencies:
            self._latencies[key] = self.split(device)[0]
        return self._latencies[key]

    def split(self, device: Ints) -> tuple[float, Ints, Floats]:
        """Return the latency, the busy devices, and their Hz."""
        seconds, payload = self.loads(device)
        busy = np.unique(device)
        latency, share = share_bandwidth(seconds[busy], payload[busy], busy, self.link, self.bandwidth)
        return latency, busy, share

    def assign(self, device: Ints, rng: np.random.Generator | None = None) -> Ints:
        """Assign the blocks marked -1, deepest first, to the device that finishes first at an equal share.

        ``rng`` adds noise to the times.
        """
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
        """Search until no target can be reached. Return the assignment and the number of steps."""
        latency, steps = self.latency(device), 0
        for reduction in TARGET_REDUCTIONS:
            while steps < MAX_STEPS and latency > 0:
                candidate, deadline = device, latency * (1 - reduction)
                while steps < MAX_STEPS:
                    key = candidate.tobytes(), deadline
                    if key not in self._steps:
                        self._steps[key] = self._best_step(candidate, deadline)
                    neighbor = self._steps[key]
                    if neighbor is None:
                        break
                    candidate = neighbor
                    steps += 1
                new_latency = self.latency(candidate)
                if new_latency >= latency * (1 - 1e-12):
                    break
                device, latency = candidate, new_latency
        return device, steps

    def _best_step(self, device: Ints, deadline: float) -> Ints | None:
        """Return the neighbor that needs the least band at ``deadline``; None if no neighbor is better."""
        seconds, payload = self.loads(device)
        every, block = np.arange(self.devices), np.arange(self.blocks)
        members = self.members(device)
        # compute seconds of each device without block b, which differ only if b is its slowest block
        without = np.stack(
            [np.where((members > 0) & (block != b), self.seconds, 0.0).max(axis=1) for b in block], axis=1
        )
        left = without[device, block], payload[device] - self.bits  # of b's device without b: [L] each
        # swaps: b leaves its device and c comes
        come = np.maximum(left[0][:, None], self.seconds[device][:, block])
        need, alone, there, after = self._needs(
            deadline,
            (seconds, payload, every),
            (*left, device),
            (np.maximum(seconds[:, None], self.seconds), payload[:, None] + self.bits, every[:, None]),
            (come, left[1][:, None] + self.bits, device[:, None]),
        )

        # moves: block b from its device to k
        gain = need[device] + need[:, None] - alone - there  # (devices, blocks)
        gain[device, block] = -np.inf

        # swaps: b to c's device and c to b's
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

    def _needs(self, deadline: float, *uploads: tuple[Floats, Floats, Ints]) -> list[Floats]:
        """Return :meth:`_need` of each (seconds, payload, device), computed in one call: the arrays are small."""
        shapes = [np.broadcast_shapes(*(part.shape for part in upload)) for upload in uploads]
        columns = [
            np.concatenate([np.broadcast_to(part, shape).ravel() for part, shape in zip(parts, shapes, strict=True)])
            for parts in zip(*uploads, strict=True)
        ]
        need = self._need(deadline, *columns)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(need, ends[:-1]), shapes, strict=True)]

    def _need(self, deadline: float, seconds: Floats, payload: Floats, device: Ints) -> Floats:
        """Return the Hz for the deadline; beyond the whole band, the band times the relative lateness."""
        payload = np.maximum(payload, 0.0)  # a difference of sums may round to below 0
        need = least_bandwidths(deadline, seconds, payload, device, self.link)
        finish = seconds + upload_seconds(self.link, device, payload, self.bandwidth)
        late = self.bandwidth * np.maximum(finish / deadline, 1.0)
        return np.where(need <= self.bandwidth, need, late)

    def plan(self, device: Ints, rounds: int) -> JointPlan:
        """Return the assignment as a plan, with the band of each device split by payload."""
        latency, busy, share = self.split(device)
        _, payload = self.loads(device)
        hertz = np.zeros(self.devices)
        hertz[busy] = share
        with np.errstate(all="ignore"):
            part = np.where(payload[device] > 0, self.bits / payload[device], 0.0)
        return JointPlan(device, hertz[device] * part, latency, min(self.bound(), latency), rounds)

    def bound(self) -> float:
        """Return a lower bound: every block alone on its best device with the whole band.

        Blocks that are sent together do not finish earlier.
        """
        upload = upload_seconds(self.link, np.arange(self.devices)[:, None], self.bits, self.bandwidth)
        return float((self.seconds + upload).min(axis=0).max())
