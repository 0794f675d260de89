"""Pruning of a large fleet to the devices that can matter, without losing an optimum; assignment of the others.

**Why L devices per block are enough at fixed costs.** Take any assignment that gives block b to a device outside
the L cheapest of b. The other L - 1 blocks occupy at most L - 1 of those L, so one is free; moving b there does
not cost more.

**At one deadline** this is sufficient: :func:`cheaper_pairs` finds, in one pass over the table, every pair that could
be among the L cheapest of its block. The exact solver works on few pairs and adds the missing ones at the end.

**At every deadline and price at once**, as the dual ascent needs it: the cost of a pair grows with its compute seconds
and falls along a chain of the link (better radio first). If L devices precede k in its chain and compute b no slower,
each of them is as cheap as k for b at any deadline, and the same exchange removes (k, b). Each exchange moves up the
chain, so the exchanges end. The remaining pairs are the L-skyband of (link, compute): about ``L * ln(K / L)`` devices
per block if the two are independent, but all devices in a fleet where every faster device has the worse radio.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskedge.errors import TaskEdgeError
from taskedge.planning.bandwidth import least_bandwidths
from taskedge.planning.link_models import Floats, Ints
from taskedge.planning.problem import InfeasiblePlan, Instance, upload_seconds

MAX_CHUNK_ROWS = 2048
"""Rows that are read together. With 96 blocks they take 1.5 MB, which stays in the cache."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The devices that can matter for each block.

    Attributes:
        device: ``[L, M]`` devices, padded with -1.
        seconds: ``[L, M]`` their compute seconds, padded with ``inf``.
    """

    device: Ints
    seconds: Floats


def import_scipy(module: str) -> Any:
    """Return ``scipy.<module>``.

    Raises:
        TaskEdgeError: scipy is not installed. The message has the command that installs it.
    """
    import importlib

    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise TaskEdgeError("this solver needs scipy: pip install 'taskedge[plan]'") from error


def skyband(read: Callable[[slice, Floats], Floats], rows: int, blocks: int) -> tuple[Ints, Ints, Floats]:
    """Find the entries of a ``[rows, blocks]`` table with fewer than ``blocks`` earlier rows that are no larger.

    The result may have a few more entries, but never fewer.

    Args:
        read: returns consecutive rows, once each. Its second argument is ``[blocks]`` limits: it may replace values
            at or above a limit by ``inf``.
        rows: rows of the table.
        blocks: columns of the table.

    Returns:
        Three arrays of equal length: row, block, value (finite).
    """
    smallest = np.full((blocks, blocks), np.inf)  # (block, rank): the least values so far
    kept: list[tuple[Ints, Ints, Floats]] = []
    start, size = 0, max(64, blocks)
    while start < rows:
        part = read(slice(start, min(start + size, rows)), smallest[:, -1])  # (rows, blocks)
        flat = np.flatnonzero(part < smallest[:, -1])
        if flat.size:
            row, block = np.divmod(flat, blocks)
            values = part.ravel()[flat]
            kept.append((row + start, block, values))
            fresh = pad_by_block(block, values, blocks, np.inf)
            merged = np.concatenate([smallest, fresh], axis=1)
            merged.partition(blocks - 1, axis=1)
            smallest = merged[:, :blocks]
            smallest[:, -1] = smallest.max(axis=1)  # partition leaves rank L - 1 there already; explicit for the reader
        start, size = start + size, min(2 * size, MAX_CHUNK_ROWS)
    if not kept:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    row, block, values = (np.concatenate(column) for column in zip(*kept, strict=True))
    return row, block, values


def pad_by_block(block: Ints, values: Any, blocks: int, fill: float) -> Any:
    """Return values grouped by block as a table ``[blocks, M]``, padded with ``fill``. The order is kept."""
    order = np.argsort(block, kind="stable")
    counts = np.bincount(block, minlength=blocks)
    column = np.arange(block.size) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((blocks, max(1, int(counts.max()))), fill, dtype=values.dtype)
    table[block[order], column] = values[order]
    return table


def prune(instance: Instance) -> Candidates:
    """Return the candidates of every block for any deadline and price, in one pass over the table."""
    rows, columns, values = [], [], []
    for chain in instance.link.chains():

        def read(part: slice, _: Floats, chain: Ints = chain) -> Floats:
            devices = chain[part]
            return np.where(instance.fits[devices], instance.compute[devices], np.inf)

        row, block, seconds = skyband(read, chain.size, instance.blocks)
        rows.append(chain[row])
        columns.append(block)
        values.append(seconds)
    device, block, seconds = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    return Candidates(
        pad_by_block(block, device, instance.blocks, -1), pad_by_block(block, seconds, instance.blocks, np.inf)
    )


def cheapest_at_equal_shares(instance: Instance) -> Candidates:
    """Return, for every block, the L devices that finish first if all uploads have equal shares of the band."""
    seconds_per_bit = _seconds_per_bit(instance, instance.bandwidth / instance.blocks)

    def read(part: slice, _: Floats) -> Floats:
        upload = seconds_per_bit[part, None] * instance.bits
        return np.where(instance.fits[part], instance.compute[part] + upload, np.inf)

    device, block, ends = skyband(read, instance.devices, instance.blocks)
    return _lowest(instance, device, block, ends)


def cheaper_pairs(instance: Instance, near: Candidates, deadline: float, need: Floats) -> Candidates | None:
    """Return pairs outside ``near`` that need less band than the L-th cheapest candidate of their block.

    Args:
        instance: the problem.
        near: the candidates.
        deadline: seconds.
        need: ``[L, M]`` Hz of the candidates at the deadline.

    Returns:
        At most L pairs per block, the cheapest ones. None if there are no such pairs: then ``near`` has L cheapest
        devices of every block at that deadline, and a deadline that is infeasible for ``near`` is infeasible for the
        fleet.
    """
    blocks = instance.blocks
    mark = np.partition(need, blocks - 1, axis=1)[:, blocks - 1] if need.shape[1] >= blocks else np.full(blocks, np.inf)
    largest = min(float(mark.max()), instance.bandwidth)
    if largest <= 0:
        return None
    seconds_per_bit = _seconds_per_bit(instance, largest)  # one rate per device instead of one per pair
    late = deadline * (1 + 1e-9)  # the two quick tests may err by rounding, in favor of a pair

    def read(part: slice, limits: Floats) -> Floats:
        limit = np.minimum(mark, limits)  # (blocks,)
        seconds = instance.compute[part]
        flat = np.flatnonzero(instance.fits[part] & (seconds + seconds_per_bit[part, None] * instance.bits <= late))
        row, block = np.divmod(flat, blocks)
        ends = seconds.ravel()[flat] + upload_seconds(
            instance.link, row + part.start, instance.bits[block], limit[block]
        )
        row, block = np.divmod(flat[ends <= late], blocks)  # few remain: a least bandwidth costs more than a rate
        need = least_bandwidths(deadline, seconds[row, block], instance.bits[block], row + part.start, instance.link)
        hertz = np.full(seconds.shape, np.inf)
        hertz[row, block] = np.where((need < limit[block]) & (need <= instance.bandwidth), need, np.inf)
        return hertz

    device, block, hertz = skyband(read, instance.devices, blocks)
    present = (near.device + np.arange(blocks)[:, None] * instance.devices)[near.device >= 0]
    fresh = ~np.isin(device + block * instance.devices, present)
    return _lowest(instance, device[fresh], block[fresh], hertz[fresh]) if fresh.any() else None


def with_missing(instance: Instance, near: Candidates, deadline: float) -> tuple[Candidates, bool]:
    """Return the candidates with those that were missing at ``deadline``, and whether none was missing."""
    need = least_bandwidths(deadline, near.seconds, instance.bits[:, None], near.device, instance.link)
    missing = cheaper_pairs(instance, near, deadline, need)
    if missing is None:
        return near, True
    device = np.concatenate([near.device, missing.device], axis=1)
    return Candidates(device, np.concatenate([near.seconds, missing.seconds], axis=1)), False


def _seconds_per_bit(instance: Instance, bandwidth: float) -> Floats:
    """Return ``[K]`` seconds per bit at ``bandwidth`` Hz; a huge number for a device that cannot send."""
    with np.errstate(divide="ignore"):
        seconds = 1 / instance.link.rate(np.arange(instance.devices), bandwidth)
    return np.minimum(seconds, 1e280)  # finite, so that an empty payload takes 0 s


def _lowest(instance: Instance, device: Ints, block: Ints, cost: Floats) -> Candidates:
    """Return the L pairs of least cost of every block, with their compute seconds."""
    order = np.argsort(pad_by_block(block, cost, instance.blocks, np.inf), axis=1, kind="stable")[:, : instance.blocks]
    device = np.take_along_axis(pad_by_block(block, device, instance.blocks, -1), order, axis=1)
    seconds = instance.compute[device, np.arange(instance.blocks)[:, None]]
    return Candidates(device, np.where(device >= 0, seconds, np.inf))


def cheapest_assignment(cost: Floats, device: Ints) -> tuple[Ints, float] | None:
    """Return the assignment of least total cost.

    Args:
        cost: ``[L, M]`` cost of each pair; ``inf`` forbids it.
        device: ``[L, M]`` devices of the pairs.

    Returns:
        ``column[L]``, the chosen column of each block, and the total cost. None if no assignment is finite.
    """
    solve = import_scipy("optimize").linear_sum_assignment
    blocks, width = cost.shape
    keep = (
        np.argpartition(cost, blocks - 1, axis=1)[:, :blocks]
        if width > blocks
        else np.tile(np.arange(width), (blocks, 1))
    )
    cost = np.take_along_axis(cost, keep, axis=1)
    ids, column = np.unique(np.take_along_axis(device, keep, axis=1), return_inverse=True)
    if ids.size < blocks:
        return None
    row = np.arange(blocks)[:, None]
    dense = np.full((blocks, ids.size), np.inf)
    source = np.zeros((blocks, ids.size), dtype=np.intp)  # the column of ``cost`` behind each entry of ``dense``
    column = column.reshape(cost.shape)
    dense[row, column] = cost
    source[row, column] = keep
    try:
        chosen_row, chosen = solve(dense)
    except ValueError:  # scipy: every assignment has an infinite entry
        return None
    return source[chosen_row, chosen], float(dense[chosen_row, chosen].sum())


def raise_if_unmatched(allowed: Any, device: Ints, devices: int) -> None:
    """Raise InfeasiblePlan if the allowed pairs ``[L, M]`` do not admit an assignment of every block."""
    sparse = import_scipy("sparse")
    matching = import_scipy("sparse.csgraph").maximum_bipartite_matching
    blocks = device.shape[0]
    row, column = np.nonzero(allowed)
    ids, compact = np.unique(device[row, column], return_inverse=True)
    graph = sparse.csr_matrix((np.ones(row.size, dtype=np.int8), (row, compact)), shape=(blocks, max(1, ids.size)))
    free = np.flatnonzero(matching(graph, perm_type="column") < 0)
    if free.size == 0:
        return
    without_device = np.flatnonzero(~np.asarray(allowed).any(axis=1))
    block = int(without_device[-1] if without_device.size else free[-1])
    if without_device.size:
        reason = f"no device can take block {block} (depth {block + 1})"
    elif devices < blocks:
        reason = f"{blocks} blocks need as many devices, there are {devices}: use the solver 'several', or fewer blocks"
    else:
        reason = f"every device that can take block {block} (depth {block + 1}) is needed for another block"
    raise InfeasiblePlan(
        block, int(free.size), f"{reason}; {free.size} of {blocks} blocks cannot be placed on {devices} devices"
    )
