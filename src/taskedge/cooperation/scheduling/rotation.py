"""Devices take turns with the parts of a plan, so that every block learns from every device's data (ours).

A plan says which device trains which blocks, and holds while nothing changes: each block would see one device's rows
for the whole run, and where there are more devices than blocks, some would never train. So a part goes on to the device
that has trained its blocks least often, among those that can hold it and have it done in nearly the time of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskedge.cooperation.scheduling.round_tasks import Share
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.link_models import Link
from taskedge.planning.problem import upload_seconds

Counts = Mapping[str, Mapping[int, int]]
"""How often each device has trained each block."""


def in_turn(
    shares: Sequence[Share],
    names: Sequence[str],
    costs: Costs,
    link: Link,
    counts: Counts,
    longer: float,
    head_bits: float,
) -> list[Share]:
    """The parts of ``shares`` on the devices whose turn it is.

    Parts that few devices can take are given out first. Where that leaves one without a device, the round stays as it
    was planned.

    Args:
        names: rows of ``costs``, which is of all blocks.
        longer: by what share of the planned round it may take longer.
        head_bits: what the head's upload adds.

    Returns:
        As many shares, of different devices, in the order of ``names``.
    """
    latest = (1 + longer) * max(share.seconds for share in shares)
    able: list[tuple[Share, dict[int, Share]]] = []
    for share in shares:
        columns = [block - 1 for block in share.blocks if block]
        bits = float(costs.bits[columns].sum()) + (head_bits if 0 in share.blocks else 0.0)
        on = {}
        for k, name in enumerate(names):
            up = float(upload_seconds(link, k, bits, share.bandwidth_hz))
            moved = replace(
                share,
                device=name,
                uplink_bits_per_second=float(link.rate(k, share.bandwidth_hz)),
                down_seconds=float(costs.down[k]),
                compute_seconds=float(costs.compute[k, columns[-1]]),
                up_seconds=up,
            )
            if moved.seconds <= latest and costs.holding(k, columns) <= costs.capacity[k]:
                on[k] = moved
        able.append((share, on))
    taken: dict[int, Share] = {}
    for share, on in sorted(able, key=lambda pair: len(pair[1])):
        free = [k for k in on if k not in taken]
        if not free:
            return list(shares)
        chosen = min(free, key=lambda k: (_times(counts, names[k], share.blocks), _times(counts, names[k]), k))
        taken[chosen] = on[chosen]
    return [taken[k] for k in sorted(taken)]


def counted(counts: Counts, shares: Sequence[Share]) -> dict[str, dict[int, int]]:
    """The counts with another round's shares."""
    after = {name: dict(blocks) for name, blocks in counts.items()}
    for share in shares:
        mine = after.setdefault(share.device, {})
        for block in share.blocks:
            mine[block] = mine.get(block, 0) + 1
    return after


def _times(counts: Counts, name: str, blocks: Sequence[int] | None = None) -> int:
    """How often a device has trained these blocks, or any; the head goes with every part, so it does not count."""
    mine = counts.get(name, {})
    return sum(times for block, times in mine.items() if block and (blocks is None or block in blocks))
