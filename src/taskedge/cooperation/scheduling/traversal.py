"""Devices also answer for blocks that their backward pass goes through anyway (ours).

Backpropagation to a block passes every block nearer to the loss, and the gradients of their few entries cost next to
nothing beside it but their upload. So a part of a plan is widened by blocks that it passes, as far as the round stays
within its time and the device's memory holds them. Those blocks learn from more data in the same round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from taskedge.cooperation.scheduling.round_tasks import Share
from taskedge.planning.fleet_costs import Costs


def in_passing(
    shares: Sequence[Share], active: Sequence[int], names: Sequence[str], costs: Costs, latest: float
) -> list[Share]:
    """The shares, each with the active blocks that it passes and has time and memory for.

    Deep blocks first, since the fewest devices pass them. A device keeps its share of the band.

    Args:
        active: the blocks that train in this round.
        names: rows of ``costs``, which is of all blocks.
        latest: seconds that a widened share may take; one that takes longer as it is stays so.
    """
    return [_widened(share, active, names.index(share.device), costs, latest) for share in shares]


def _widened(share: Share, active: Sequence[int], device: int, costs: Costs, latest: float) -> Share:
    found = share
    for block in sorted(active, reverse=True):
        if block >= share.deepest or block in share.blocks:
            continue
        blocks = tuple(sorted((*found.blocks, block)))
        up = found.up_seconds + float(costs.bits[block - 1]) / share.uplink_bits_per_second
        wider = replace(found, blocks=blocks, up_seconds=up)
        columns = [b - 1 for b in blocks if b]
        if wider.seconds <= latest and costs.holding(device, columns) <= costs.capacity[device]:
            found = wider
    return found
