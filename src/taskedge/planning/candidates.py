"""Few devices of a large fleet can matter: pruning that loses no optimum, and the assignment on what is left.

**Why L devices per block are enough at fixed costs.** Take any assignment that gives block b to a device outside
the L cheapest of b. The other L - 1 blocks occupy at most L - 1 of those L, so one is free; moving b there does
not cost more.

**Why it can be done once, for every deadline.** The bandwidth a pair needs grows with its compute seconds and falls
along a chain of the link (better radio first). If L devices stand before k in its chain and compute b no slower,
each of them is at least as cheap as k for b *at every deadline and every price*, and the same exchange removes
(k, b); each exchange moves up the chain, so it ends. What survives is the L-skyband of (link, compute): about
``L * ln(K / L)`` devices per block when the two are independent. (ours)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskedge.errors import TaskEdgeError
from taskedge.planning.links import Floats, Ints
from taskedge.planning.solution import InfeasiblePlan, Instance

CHUNK = 2048  # rows looked at together: with 96 blocks 1.5 MB, which stays in the cache


@dataclass(frozen=True, eq=False)
class Candidates:
    """Per block the devices that can matter: ``device[L, M]`` (-1 pads) and ``seconds[L, M]`` (``inf`` pads)."""

    device: Ints
    seconds: Floats


def import_scipy(module: str) -> Any:
    """``scipy.<module>``, or an error that says how to get it."""
    import importlib

    try:
        return importlib.import_module(f"scipy.{module}")
    except ImportError as error:
        raise TaskEdgeError("this solver needs scipy: pip install 'taskedge[plan]'") from error


def skyband(read: Callable[[slice], Floats], rows: int, blocks: int) -> tuple[Ints, Ints, Floats]:
    """Entries of a ``[rows, blocks]`` table with fewer than ``blocks`` rows *before* them that are no larger.

    A few more may come back, never fewer. ``read`` returns consecutive rows; the table is read once.

    Returns:
        Three arrays of equal length: row, block, value (finite).
    """
    smallest = np.full((blocks, blocks), np.inf)  # (block, rank): the least values so far
    found: list[tuple[Ints, Ints, Floats]] = []
    start, size = 0, max(64, blocks)
    while start < rows:
        part = read(slice(start, min(start + size, rows)))  # (rows, blocks)
        flat = np.flatnonzero(part < smallest[:, -1])
        if flat.size:
            row, block = np.divmod(flat, blocks)
            values = part.ravel()[flat]
            found.append((row + start, block, values))
            fresh = pad_by_block(block, values, blocks, np.inf)
            merged = np.concatenate([smallest, fresh], axis=1)
            merged.partition(blocks - 1, axis=1)
            smallest = merged[:, :blocks]
            smallest[:, -1] = smallest.max(axis=1)  # partition leaves rank L - 1 there already; explicit for the reader
        start, size = start + size, min(2 * size, CHUNK)
    if not found:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    row, block, values = (np.concatenate(column) for column in zip(*found, strict=True))
    return row, block, values


def pad_by_block(block: Ints, values: Any, blocks: int, fill: float) -> Any:
    """Values with their block as a table ``[blocks, most]``, padded with ``fill``, order kept."""
    order = np.argsort(block, kind="stable")
    counts = np.bincount(block, minlength=blocks)
    place = np.arange(block.size) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((blocks, max(1, int(counts.max()))), fill, dtype=values.dtype)
    table[block[order], place] = values[order]
    return table


def prune(instance: Instance) -> Candidates:
    """The candidates of every block, in one pass over the table."""
    rows, columns, values = [], [], []
    for chain in instance.link.chains():

        def read(part: slice, chain: Ints = chain) -> Floats:
            mine = chain[part]
            return np.where(instance.fits[mine], instance.compute[mine], np.inf)

        row, block, seconds = skyband(read, chain.size, instance.blocks)
        rows.append(chain[row])
        columns.append(block)
        values.append(seconds)
    device, block, seconds = np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
    return Candidates(
        pad_by_block(block, device, instance.blocks, -1), pad_by_block(block, seconds, instance.blocks, np.inf)
    )


def cheapest_assignment(cost: Floats, device: Ints) -> tuple[Ints, float] | None:
    """The assignment of least total cost among ``cost[L, M]`` of ``device[L, M]``; ``inf`` forbids a pair.

    Returns:
        ``column[L]``, the chosen column of each block, and the total; None where no assignment is finite.
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
    place = np.zeros((blocks, ids.size), dtype=np.intp)
    column = column.reshape(cost.shape)
    dense[row, column], place[row, column] = cost, keep
    try:
        chosen_row, chosen = solve(dense)
    except ValueError:  # scipy's way to say that every assignment has an infinite entry
        return None
    return place[chosen_row, chosen], float(dense[chosen_row, chosen].sum())


def raise_if_unmatched(allowed: Any, device: Ints, devices: int) -> None:
    """Raises InfeasiblePlan where the allowed pairs ``[L, M]`` admit no assignment of every block."""
    sparse = import_scipy("sparse")
    matching = import_scipy("sparse.csgraph").maximum_bipartite_matching
    blocks = device.shape[0]
    row, column = np.nonzero(allowed)
    ids, compact = np.unique(device[row, column], return_inverse=True)
    graph = sparse.csr_matrix((np.ones(row.size, dtype=np.int8), (row, compact)), shape=(blocks, max(1, ids.size)))
    free = np.flatnonzero(matching(graph, perm_type="column") < 0)
    if free.size == 0:
        return
    nobody = np.flatnonzero(~np.asarray(allowed).any(axis=1))
    block = int(nobody[-1] if nobody.size else free[-1])
    if nobody.size:
        reason = f"no device can take block {block} (depth {block + 1})"
    elif devices < blocks:
        reason = f"{blocks} blocks need as many devices, there are {devices}: use the solver 'several', or fewer blocks"
    else:
        reason = f"block {block} (depth {block + 1}) finds no device that is not needed for another block"
    raise InfeasiblePlan(
        block, int(free.size), f"{reason}; {free.size} of {blocks} blocks cannot be placed on {devices} devices"
    )
