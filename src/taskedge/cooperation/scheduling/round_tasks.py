"""Who trains which blocks in a round: from costs and a mode to each device's share. Pure functions over the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.bandwidth import share_bandwidth
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.link_models import Bools, Ints, Link
from taskedge.planning.plan import effective_solver, solve
from taskedge.planning.problem import Assignment, upload_seconds


@dataclass(frozen=True)
class Share:
    """One device's part of a round. Seconds are predicted."""

    device: str
    blocks: tuple[int, ...]
    """Depths, shallow first; the head (0) among them where the device trains it."""
    bandwidth_hz: float
    uplink_bits_per_second: float
    """What the device's link carries at that bandwidth."""
    down_seconds: float
    compute_seconds: float
    up_seconds: float

    @property
    def seconds(self) -> float:
        """From the task's leaving to the answer's arrival."""
        return self.down_seconds + self.compute_seconds + self.up_seconds

    @property
    def deepest(self) -> int:
        """The depth that backpropagation reaches, in blocks."""
        return max(self.blocks)

    def facts(self) -> dict[str, Any]:
        """JSON-able; :func:`read_share` reads them."""
        return asdict(self)


def read_share(facts: dict[str, Any]) -> Share:
    """The mirror image of :meth:`Share.facts`."""
    return Share(**{**facts, "blocks": tuple(facts["blocks"])})


def shares(
    mode: str,
    names: Sequence[str],
    costs: Costs,
    link: Link,
    bandwidth: float,
    active: Sequence[int],
    *,
    copies: int = 2,
    solver: str = "joint",
    head: str = "every",
    head_bits: float = 0.0,
    seed: int = 0,
) -> list[Share]:
    """Plans a round of the blocks ``active`` (depths) on the devices ``names`` (the rows of ``costs``).

    Args:
        mode: ``deft`` gives each block to one device, with the planner's ``solver``; ``replicate`` to ``copies``
            different ones (fewer where there are not so many devices); ``fedavg`` gives all of them to every device
            that can hold them.
        head: ``every``: whoever trains, trains the head as well; ``first``: the devices with the first active block.
        head_bits: what its upload adds.
        seed: of a solver that draws.

    Returns:
        Shares in the order of ``names``; devices without a share are left out.

    Raises:
        InfeasiblePlan: some block finds no device that can hold it.
    """
    wanted = sorted(active)
    columns = np.array([block - 1 for block in wanted])
    mine = replace(
        costs,
        compute=costs.compute[:, columns],
        memory=costs.memory[:, columns],
        extra=costs.extra[:, columns],
        bits=costs.bits[columns] + (head_bits if head == "every" else 0.0),
    )
    parts = _parts(mode, mine, link, bandwidth, min(copies, len(names)), solver, seed)
    found = []
    for part in sorted(parts, key=lambda part: part.device):
        blocks = tuple(wanted[column] for column in part.blocks)
        with_head = head == "every" or wanted[0] in blocks
        bits = float(costs.bits[[block - 1 for block in blocks]].sum()) + (head_bits if with_head else 0.0)
        found.append(
            Share(
                device=names[part.device],
                blocks=(0, *blocks) if with_head and head_bits else blocks,
                bandwidth_hz=part.bandwidth,
                uplink_bits_per_second=float(link.rate(part.device, part.bandwidth)),
                down_seconds=float(costs.down[part.device]),
                compute_seconds=float(costs.compute[part.device, blocks[-1] - 1]),
                up_seconds=float(upload_seconds(link, part.device, bits, part.bandwidth)),
            )
        )
    return found


def _parts(
    mode: str, costs: Costs, link: Link, bandwidth: float, copies: int, solver: str, seed: int
) -> list[Assignment]:
    """Assignments with sorted columns, one for each device that has any."""
    devices, blocks = costs.compute.shape
    if mode == "fedavg":
        return _merged(solve("fedavg", costs, link, bandwidth).assignments(), 1)
    if mode == "deft" or copies == 1:
        chosen = effective_solver(solver, devices, blocks)
        return _merged(solve(chosen, costs, link, bandwidth, seed=seed).assignments(), 1)
    if devices >= copies * blocks:
        return _merged(solve(solver, costs, link, bandwidth, copies, seed).assignments(), copies)
    return _layered(costs, link, bandwidth, copies)


def _merged(parts: Sequence[Assignment], copies: int) -> list[Assignment]:
    """Columns as blocks: with copies, column b of a plan is block ``b // copies``."""
    return [replace(part, blocks=tuple(sorted({block // copies for block in part.blocks}))) for part in parts]


def _layered(costs: Costs, link: Link, bandwidth: float, copies: int) -> list[Assignment]:
    """Copies on few devices: plan after plan, each without the pairs that are taken; then one split of the band.

    A block gets fewer copies where no other device can hold it.
    """
    devices, blocks = costs.compute.shape
    taken = np.zeros((devices, blocks), dtype=bool)
    for layer in range(copies):
        usable = costs.fits_together & ~taken
        open_blocks = np.flatnonzero(usable.any(axis=0) if layer else np.ones(blocks, dtype=bool))
        if not open_blocks.size:
            break
        rest = _only(costs, open_blocks, usable)
        taken[solve("several", rest, link, bandwidth).device_of_block, open_blocks] = True
    busy = np.flatnonzero(taken.any(axis=1))
    compute = np.array([costs.busy[k, np.flatnonzero(taken[k])[-1]] for k in busy])
    bits = np.array([costs.bits[taken[k]].sum() for k in busy])
    _, share = share_bandwidth(compute, bits, busy, link, bandwidth)
    return [
        Assignment(int(k), tuple(np.flatnonzero(taken[k]).tolist()), float(hertz))
        for k, hertz in zip(busy, share, strict=True)
    ]


def _only(costs: Costs, columns: Ints, usable: Bools) -> Costs:
    """The costs of some blocks, with a memory that only the usable pairs fit."""
    memory = np.where(usable, 0.0, np.inf)[:, columns]
    return replace(
        costs,
        compute=costs.compute[:, columns],
        memory=memory,
        extra=np.zeros_like(memory),
        bits=costs.bits[columns],
    )


def device_flops(table: BlockTable, found: Sequence[Share], tokens: dict[str, float]) -> float:
    """FLOPs of all devices in a round: forward, and backward down to each one's deepest block."""
    forward = float(table.forward_flops.sum()) + table.other_forward_flops
    reach = np.cumsum(table.backward_flops)
    return float(sum(tokens[one.device] * (forward + reach[one.deepest - 1]) for one in found))
