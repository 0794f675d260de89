"""CRUNCH: the best matching of blocks and devices at fixed latencies.

*Cut*: at a deadline every device can take the blocks up to some depth, since latency grows with depth.
*Recount*: count the devices that reach each depth. *Check*: n blocks from depth b on need n devices that reach b
(Hall's condition; nested sets need no other). With nested sets the least feasible deadline has a closed form: the block
that is n-th from the deepest must wait for the n-th smallest latency of its column, so the round takes the largest of
these. Assign from the deepest block on: of the n devices that are in time for the n-th block, the deeper blocks occupy
at most n - 1.

Source: LoLa DEFT (arXiv 2407.09873), from which the three steps are reconstructed; this project for the closed form.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from taskedge.errors import InputError
from taskedge.planning.bandwidth import share_bandwidth
from taskedge.planning.link_models import Bools, Floats, Ints, Link
from taskedge.planning.problem import Instance, JointPlan, Matching, check_instance, check_table, upload_seconds
from taskedge.planning.pruning import Candidates, import_scipy, pad_by_block, raise_if_unmatched, skyband
from taskedge.planning.solvers import SOLVERS


def match_blocks(latency: ArrayLike, fits: ArrayLike) -> Matching:
    """Give every block its own device so that the slowest pair is as fast as possible.

    The result is exact. It takes one pass over the table, since only the L fastest devices of a block can matter. If
    the latency of some device does not grow with depth (or a device holds a block but not a shallower one), the sets
    are not nested, and the matching is found by bisection over bipartite matchings; see ``method`` of the result.

    Args:
        latency: ``[K, L]`` seconds, column b the block at depth b + 1.
        fits: ``[K, L]`` bool, whether the device can hold the block.

    Raises:
        InfeasiblePlan: some block finds no device.
        InputError: wrong shapes, negative or NaN seconds.
    """
    table, mask, faults = check_table("latency", latency, fits, scan=False)  # the pass below scans
    if faults:
        raise InputError("; ".join(faults))
    devices, blocks = table.shape
    monotone = True

    def read(rows: slice, _: Floats) -> Floats:
        nonlocal monotone
        part = table[rows]
        if not part.min() >= 0:
            raise InputError("; ".join(check_table("latency", table, mask)[2]))
        part = np.where(mask[rows], part, np.inf)
        monotone = monotone and bool((part[:, 1:] >= part[:, :-1]).all())
        return part

    device, block, seconds = skyband(read, devices, blocks)
    near = Candidates(pad_by_block(block, device, blocks, -1), pad_by_block(block, seconds, blocks, np.inf))
    order = np.argsort(near.seconds, axis=1, kind="stable")[:, :blocks]
    near = Candidates(np.take_along_axis(near.device, order, axis=1), np.take_along_axis(near.seconds, order, axis=1))
    chosen = _assign_in_order(near) if monotone else None
    if chosen is None:
        raise_if_unmatched(np.isfinite(near.seconds), near.device, devices)
        chosen = _bottleneck(near)
    matched = near.device[np.arange(blocks), chosen]
    return Matching(matched, float(table[matched, np.arange(blocks)].max()), "crunch" if monotone else "bottleneck")


def _assign_in_order(near: Candidates) -> Ints | None:
    """Give each block, deepest first, its fastest free device. Return None if a block finds none."""
    blocks = near.device.shape[0]
    chosen, used = np.zeros(blocks, dtype=np.intp), set[int]()
    for block in reversed(range(blocks)):
        for column, device in enumerate(near.device[block].tolist()):
            if device >= 0 and device not in used:
                chosen[block] = column
                used.add(device)
                break
        else:
            return None
    return chosen


def _bottleneck(near: Candidates) -> Ints:
    """Return the matching with the least maximum latency for any table, by bisection over its values."""
    sparse, graphs = import_scipy("sparse"), import_scipy("sparse.csgraph")
    blocks = near.device.shape[0]
    ids, compact = np.unique(near.device, return_inverse=True)
    compact = compact.reshape(near.device.shape)

    def match(allowed: Bools) -> Ints:
        row, column = np.nonzero(allowed)
        shape = (blocks, ids.size)
        graph = sparse.csr_matrix((np.ones(row.size, dtype=np.int8), (row, compact[row, column])), shape=shape)
        return np.asarray(graphs.maximum_bipartite_matching(graph, perm_type="column"), dtype=np.intp)

    values = np.unique(near.seconds[np.isfinite(near.seconds)])
    low, high = 0, values.size - 1
    while low < high:
        middle = (low + high) // 2
        if (match(near.seconds <= values[middle]) >= 0).all():
            high = middle
        else:
            low = middle + 1
    partner = match(near.seconds <= values[low])
    return np.asarray(np.argmax(compact == partner[:, None], axis=1))


def equal_share_latency(instance: Instance) -> Floats:
    """Return ``[K, L]`` seconds of every pair if each of the L uploads has the same share of the band."""
    every, share = np.arange(instance.devices)[:, None], instance.bandwidth / instance.blocks
    return instance.compute + upload_seconds(instance.link, every, instance.bits, share)


@SOLVERS.register("match")
def match_then_share(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> JointPlan:
    """Match with CRUNCH at equal shares of the band, then split the band optimally: fast, and close to the optimum."""
    instance = check_instance(compute, fits, bits, link, bandwidth)
    device = match_blocks(equal_share_latency(instance), instance.fits).device_of_block
    seconds = instance.compute[device, np.arange(instance.blocks)]
    latency, share = share_bandwidth(seconds, instance.bits, device, link, instance.bandwidth)
    return JointPlan(device, share, latency, 0.0)
