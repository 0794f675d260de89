"""The optimal plan with any number of blocks on a device, by dynamic programming over sets of blocks.

For a deadline T, ``need[k, S]`` is the band that device k needs to train and send the blocks S by T. The least band for
all blocks follows device by device: ``best_k[S] = min over U within S of best_(k-1)[S - U] + need[k, U]``. That takes
``K 3^L`` steps, whatever the costs, links and memory are. Starting from a plan, T is set just below its latency; either
some plan meets T, which is then split optimally and becomes the plan, or none does, and the plan is optimal.

Source: this project (the subset recurrence is the standard one of set partitioning).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.link_models import Bools, Floats, Ints
from taskedge.planning.local_search import Search
from taskedge.planning.problem import upload_seconds

MAX_WORK = 40_000_000
"""Steps ``K 3^L`` at one deadline up to which a plan is proved: 12 blocks on 75 devices, 13 on 25, 14 on 8."""

TOLERANCE = 1e-10
"""Relative precision of the latency."""


def can_prove(devices: int, blocks: int) -> bool:
    """Return whether the problem is small enough."""
    return devices * 3.0**blocks <= MAX_WORK


def prove(search: Search, device: Ints, max_steps: int) -> tuple[Ints, int, bool]:
    """Return the optimal assignment, the number of deadlines, and whether it was proved within ``max_steps``.

    Args:
        search: the problem; it must pass :func:`can_prove`.
        device: ``[L]`` devices of a plan.
        max_steps: deadlines that may be tried.
    """
    sets = _Sets(search)
    latency = search.latency(device)
    for step in range(max_steps):
        if latency <= 0:
            return device, step, True
        better = sets.within(latency * (1 - TOLERANCE))
        if better is None:
            return device, step + 1, True
        new_latency = search.latency(better)
        if not new_latency < latency:  # the need at the deadline was within rounding of the band
            return device, step + 1, True
        device, latency = better, new_latency
    return device, max_steps, False


def any_assignment(search: Search) -> Ints | None:
    """Return an assignment that the devices can hold, None if there is none. Needs :func:`can_prove`."""
    usable = np.isfinite(search.seconds)
    devices = np.flatnonzero(usable.any(axis=1))
    slowest = float(search.seconds[usable].max())
    upload = upload_seconds(search.link, devices, search.bits.sum(), search.bandwidth / search.blocks)
    return _Sets(search).within(1.01 * (slowest + float(upload.max())))


class _Sets:
    """Seconds, payload and memory of every set of blocks on every device. A set is a bit mask."""

    def __init__(self, search: Search) -> None:
        instance = search.instance
        self.search, self.blocks, self.size = search, search.blocks, 1 << search.blocks
        self.payload = np.zeros(self.size)
        self.seconds = np.zeros((search.devices, self.size))
        self.fits = np.ones((search.devices, self.size), dtype=bool)
        extra = np.zeros((search.devices, self.size))
        memory, copy_of = instance.memory, instance.copy_of
        for block in range(self.blocks):  # sets whose deepest block is this one
            low, high = slice(0, 1 << block), slice(1 << block, 2 << block)
            self.payload[high] = self.payload[low] + search.bits[block]
            self.seconds[:, high] = np.maximum(self.seconds[:, low], search.seconds[:, block, None])
            self.fits[:, high] = self.fits[:, low] & np.isfinite(search.seconds[:, block, None])
            if memory is not None:
                extra[:, high] = extra[:, low] + memory.extra[:, block, None]
                needed = memory.alone[:, block, None] + extra[:, low]
                self.fits[:, high] &= (needed <= memory.capacity[:, None]) | (np.arange(1 << block) == 0)
            if copy_of is not None:
                others = sum(1 << b for b in range(block) if copy_of[b] == copy_of[block])
                self.fits[:, high] &= (np.arange(1 << block) & others) == 0

    def within(self, deadline: float) -> Ints | None:
        """Return the assignment that needs the least band for the deadline; None if the band is not enough."""
        search, full = self.search, self.size - 1
        need = np.full((search.devices, self.size), np.inf)
        row, column = np.nonzero(self.fits)
        ready = self.seconds[row, column] <= deadline
        row, column = row[ready], column[ready]
        need[row, column] = least_bandwidths(
            deadline, self.seconds[row, column], self.payload[column], row, search.link
        )
        need[:, 0] = 0.0
        need[need > search.bandwidth] = np.inf
        devices = np.flatnonzero(np.isfinite(need[:, 1:]).any(axis=1))
        if not devices.size:
            return None
        chain, best = [], np.full(self.size, np.inf)
        best[0] = 0.0
        part, rest, starts = _splits(self.blocks)
        for i, k in enumerate(devices):
            chain.append(best)
            if i == len(devices) - 1:
                best = np.full(self.size, np.inf)
                best[full] = (chain[-1][full ^ np.arange(self.size)] + need[k]).min()
            else:
                best = np.minimum.reduceat(chain[-1][rest] + need[k][part], starts)
        if not best[full] <= search.bandwidth:
            return None
        return self._trace(devices, chain, need, full)

    def _trace(self, devices: Ints, chain: list[Floats], need: Floats, left: int) -> Ints:
        """Return the devices of the blocks that led to the least band."""
        device = np.full(self.blocks, -1, dtype=np.intp)
        every = np.arange(self.size)
        for k, before in zip(devices[::-1], chain[::-1], strict=True):
            part = every[(every & ~left) == 0]
            taken = int(part[np.argmin(before[left ^ part] + need[k, part])])
            device[_bits(taken, self.blocks)] = k
            left ^= taken
        return device


def _bits(mask: int, blocks: int) -> Bools:
    return np.array([bool(mask >> block & 1) for block in range(blocks)])


@lru_cache(maxsize=2)
def _splits(blocks: int) -> tuple[Ints, Ints, Ints]:
    """Return all splits of all sets into two parts, sorted by set, and where each set's splits start."""
    part, rest = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int32)
    for block in range(blocks):
        bit = np.int32(1 << block)
        part = np.concatenate([part, part | bit, part])
        rest = np.concatenate([rest, rest, rest | bit])
    order = np.argsort(part | rest, kind="stable")
    part, rest = part[order].astype(np.intp), rest[order].astype(np.intp)
    _, starts = np.unique(part | rest, return_index=True)
    return np.asarray(part), np.asarray(rest), np.asarray(starts, dtype=np.intp)
