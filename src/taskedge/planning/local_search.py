"""Local search for plans with any number of blocks on a device, idle devices included.

A device with a set of blocks computes as long as the slowest of them (the deepest, if seconds grow with depth: one
backward pass serves all) and sends the sum of their payloads. Feasibility of a deadline contains bin packing, so this
is a search. It targets a deadline slightly below the current latency. It moves a block to another device, or swaps two
blocks, as long as the band needed for that deadline shrinks. A device that would be late even with the whole band
counts as the whole band plus its lateness, so late devices are unloaded step by step. Then the band is split again; a
better plan is kept and the target lowered.

A step changes two devices. Only the needs of these two are computed again, so a step takes time in proportion to the
blocks, not to blocks times devices.

Source: this project.
"""

from __future__ import annotations

import numpy as np

from taskedge.planning.bandwidth import least_bandwidths, share_bandwidth
from taskedge.planning.link_models import Bools, Floats, Ints
from taskedge.planning.problem import InfeasiblePlan, Instance, upload_seconds

TARGET_REDUCTIONS = (0.05, 0.01, 1e-9)
"""Relative distances of the targeted deadline below the current latency, one after the other."""

MAX_STEPS = 2000
"""Steps of one descent."""


class Search:
    """An instance, and the quantities that every step of the search needs."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.link, self.bits, self.bandwidth = instance.link, instance.bits, instance.bandwidth
        self.devices, self.blocks = instance.devices, instance.blocks
        every = np.arange(self.devices)
        reaches = np.isfinite(upload_seconds(self.link, every[:, None], self.bits, self.bandwidth))
        self.seconds = np.where(instance.fits & reaches, instance.compute, np.inf)  # (devices, blocks)
        without_device = np.flatnonzero(~np.isfinite(self.seconds).any(axis=0))
        if without_device.size:
            block = int(without_device[-1])
            raise InfeasiblePlan(block, 1, f"no device can take block {block} (depth {block + 1})")
        self.usable = np.isfinite(self.seconds)
        self.evaluated = 0
        """Needs that were computed: the work so far."""
        self._latencies: dict[bytes, float] = {}

    def holds(self, device: int, blocks: Ints) -> Bools:
        """Return ``[L]``: whether ``device`` can train the block together with ``blocks``, which it is not among."""
        memory, copy_of = self.instance.memory, self.instance.copy_of
        allowed: Bools = self.usable[device].copy()
        allowed[blocks] = False
        if copy_of is not None:
            allowed &= ~np.isin(copy_of, copy_of[blocks])
        if memory is not None and blocks.size:
            deepest = np.maximum(np.arange(self.blocks), blocks.max())
            total = memory.extra[device, blocks].sum() + memory.extra[device]
            needed = memory.alone[device, deepest] - memory.extra[device, deepest] + total
            allowed &= needed <= memory.capacity[device]
        return allowed

    def feasible(self, device: Ints) -> bool:
        """Return whether every device can train its blocks together."""
        return all(self.holds(k, blocks[:i])[blocks[i]] for k, blocks in self.sets(device) for i in range(blocks.size))

    def sets(self, device: Ints) -> list[tuple[int, Ints]]:
        """Return the devices with work and the blocks of each."""
        return [(int(k), np.flatnonzero(device == k)) for k in np.unique(device[device >= 0])]

    def loads(self, device: Ints) -> tuple[Floats, Floats]:
        """Return ``[K]`` compute seconds and ``[K]`` payload of every device."""
        placed = np.flatnonzero(device >= 0)
        seconds = np.zeros(self.devices)
        np.maximum.at(seconds, device[placed], self.seconds[device[placed], placed])
        payload = np.zeros(self.devices)
        np.add.at(payload, device[placed], self.bits[placed])
        return seconds, payload

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

    def need(self, deadline: float, seconds: Floats, payload: Floats, device: Ints) -> Floats:
        """Return the Hz for the deadline; beyond the whole band, the band times the relative lateness."""
        self.evaluated += np.size(seconds)
        payload = np.maximum(payload, 0.0)  # a difference of sums may round to below 0
        need = least_bandwidths(deadline, seconds, payload, device, self.link)
        with np.errstate(over="ignore"):
            finish = seconds + upload_seconds(self.link, device, payload, self.bandwidth)
            late = self.bandwidth * np.maximum(finish / deadline, 1.0)
        return np.where(need <= self.bandwidth, need, late)

    def assign(self, device: Ints, rng: np.random.Generator | None = None) -> Ints | None:
        """Assign the blocks marked -1, deepest first, to the device that finishes first at an equal share.

        ``rng`` adds noise to the times. None if a block finds no device with enough memory left.
        """
        device = device.copy()
        share = self.bandwidth / min(self.devices, self.blocks)
        seconds, payload = self.loads(device)
        every = np.arange(self.devices)
        for block in np.flatnonzero(device < 0)[::-1]:
            then = np.maximum(seconds, self.seconds[:, block])
            then = then + upload_seconds(self.link, every, payload + self.bits[block], share)
            if rng is not None:
                then = then * rng.uniform(0.5, 1.5, self.devices)
            for k in np.argsort(then, kind="stable"):
                if not np.isfinite(then[k]):
                    return None
                if self.holds(int(k), np.flatnonzero(device == k))[block]:
                    break
            else:
                return None
            device[block] = k
            seconds[k], payload[k] = max(seconds[k], self.seconds[k, block]), payload[k] + self.bits[block]
        return device

    def improve(self, device: Ints, max_evaluated: float = np.inf) -> tuple[Ints, int]:
        """Search until no target can be reached, or the work is done. Return the assignment and the number of steps."""
        latency, steps = self.latency(device), 0
        for reduction in TARGET_REDUCTIONS:
            while steps < MAX_STEPS and latency > 0 and self.evaluated < max_evaluated:
                descent = _Descent(self, device, latency * (1 - reduction))
                steps += descent.run(MAX_STEPS - steps, max_evaluated)
                new_latency = self.latency(descent.device)
                if new_latency >= latency * (1 - 1e-12):
                    break
                device, latency = descent.device, new_latency
        return device, steps

    def spread(self, device: Ints, slack: float = 0.0) -> Ints:
        """Move blocks to idle devices as long as the latency grows by no more than ``slack``: the round sees more data.

        Args:
            device: ``[L]`` devices of a plan.
            slack: fraction of its latency.
        """
        limit = self.latency(device) * (1 + slack)
        if limit <= 0:
            return device
        descent = _Descent(self, device, limit)
        for block in range(self.blocks):
            idle = np.setdiff1d(np.arange(self.devices), descent.device)
            old = int(descent.device[block])
            if not idle.size or (descent.device == old).sum() < 2:
                continue
            total = descent.required.sum() - descent.required[old] + descent.without[block] + descent.add[idle, block]
            with np.errstate(invalid="ignore"):
                k = int(idle[np.argmin(total)])
            if not total.min() <= self.bandwidth:
                continue
            moved = descent.device.copy()
            moved[block] = k
            if self.latency(moved) <= limit * (1 + 1e-12):
                descent.move([(block, k)])
        return descent.device


class _Descent:
    """An assignment at a deadline, with the needs of all its neighbors.

    ``required[K]`` is the need of each device, ``without[L]`` that of a block's device without the block, ``add[K, L]``
    that of a device with one more block, and ``swap[b, c]`` that of b's device with c in the place of b.
    """

    def __init__(self, search: Search, device: Ints, deadline: float) -> None:
        self.search, self.device, self.deadline = search, device.copy(), deadline
        devices, blocks = search.devices, search.blocks
        self.required, self.without = np.zeros(devices), np.zeros(blocks)
        self.add, self.swap = np.full((devices, blocks), np.inf), np.full((blocks, blocks), np.inf)
        self.refresh(list(range(devices)))

    def run(self, max_steps: int, max_evaluated: float) -> int:
        """Take the best step while one saves band. Return the number of steps."""
        for step in range(max_steps):
            if self.search.evaluated >= max_evaluated or not self.step():
                return step
        return max_steps

    def step(self) -> bool:
        """Take the move or swap that saves most band; return False if none does."""
        device, required = self.device, self.required
        with np.errstate(invalid="ignore"):
            gain = (required[device] - self.without) + (required[:, None] - self.add)  # moves (devices, blocks)
            trade = required[device][:, None] + required[device] - self.swap - self.swap.T
        trade[device[:, None] == device] = -np.inf
        best_move, best_trade = np.max(gain, initial=-np.inf), np.max(trade, initial=-np.inf)
        if not max(best_move, best_trade) > 1e-9 * self.search.bandwidth:
            return False
        if best_move >= best_trade:
            k, b = np.unravel_index(np.argmax(gain), gain.shape)
            self.move([(int(b), int(k))])
        else:
            b, c = np.unravel_index(np.argmax(trade), trade.shape)
            self.move([(int(b), int(device[c])), (int(c), int(device[b]))])
        return True

    def move(self, moves: list[tuple[int, int]]) -> None:
        """Put blocks on other devices."""
        touched = {int(self.device[b]) for b, _ in moves} | {k for _, k in moves}
        for block, k in moves:
            self.device[block] = k
        self.refresh(sorted(touched))

    def refresh(self, touched: list[int]) -> None:
        """Compute the needs of the neighbors that involve the given devices, in one call: the arrays are small."""
        search = self.search
        seconds: list[Floats] = []
        payload: list[Floats] = []
        owner: list[Ints] = []
        allowed_add: list[Bools] = []
        allowed_swap: list[Bools] = []
        sets = [np.flatnonzero(self.device == k) for k in touched]
        for k, blocks in zip(touched, sets, strict=True):
            own = search.seconds[k]
            now = float(own[blocks].max(initial=0.0))
            sent = float(search.bits[blocks].sum())
            others = np.where(np.eye(blocks.size, dtype=bool), 0.0, own[blocks]).max(axis=1, initial=0.0)
            left = sent - search.bits[blocks]
            add = search.holds(k, blocks)
            come = self._may_come(k, blocks, add)
            allowed_add.append(add)
            allowed_swap.append(come)
            swap_seconds = np.maximum(others[:, None], own)[come]
            swap_payload = (left[:, None] + search.bits)[come]
            seconds += [np.array([now]), others, np.maximum(now, own)[add], swap_seconds]
            payload += [np.array([sent]), left, (sent + search.bits)[add], swap_payload]
            owner.append(np.full(1 + blocks.size + int(add.sum()) + swap_seconds.size, k))
        need = search.need(self.deadline, np.concatenate(seconds), np.concatenate(payload), np.concatenate(owner))
        parts = iter(np.split(need, np.cumsum([part.size for part in seconds])[:-1]))
        for k, blocks, add, come in zip(touched, sets, allowed_add, allowed_swap, strict=True):
            self.required[k] = next(parts)[0]
            self.without[blocks] = next(parts)
            self.add[k] = np.inf
            self.add[k, add] = next(parts)
            table = np.full((blocks.size, search.blocks), np.inf)
            table[come] = next(parts)
            self.swap[blocks] = table

    def _may_come(self, device: int, blocks: Ints, add: Bools) -> Bools:
        """Return ``[len(blocks), L]``: whether a block can be on ``device`` in the place of one of its own."""
        search = self.search
        if search.instance.memory is None and search.instance.copy_of is None:
            return np.asarray(np.broadcast_to(add, (blocks.size, search.blocks)))
        rows = [search.holds(device, np.delete(blocks, i)) for i in range(blocks.size)]
        return np.array(rows, dtype=bool).reshape(blocks.size, search.blocks)
