"""Why no plan exists: which block nobody can hold, how much is missing, and what would make it fit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_costs import Costs, step_bytes
from taskedge.planning.fleet_spec import Fleet
from taskedge.planning.link_models import Link
from taskedge.planning.problem import InfeasiblePlan, upload_seconds

MB = 1e6


def explain(
    error: InfeasiblePlan,
    fleet: Fleet,
    table: BlockTable,
    costs: Costs,
    link: Link,
    copies: int = 1,
    together: bool = False,
) -> InfeasiblePlan:
    """The same error with the block in the model's words, the megabytes that are missing, and remedies.

    Blocks at a depth and beyond need as many devices that hold that depth (memory rises with depth, so these are
    nested; Hall's condition). The message speaks of the first depth, from the deepest, at which they are too few.
    """
    memory = costs.memory_together if together else costs.memory
    fits = memory <= costs.capacity[:, None]
    blocks = len(table)
    needed = np.minimum(copies * np.arange(blocks, 0, -1), 1 if together else copies * blocks)  # at depth b and beyond
    short = np.flatnonzero(fits.sum(axis=0) < needed)
    if not short.size:
        return _unreachable(error, fleet, costs, link, copies)
    block = int(short[-1])
    missing = int(needed[block] - fits[:, block].sum())
    over = np.where(fits[:, block], np.inf, memory[:, block] - costs.capacity)
    nearest = int(np.argsort(over, kind="stable")[min(missing, len(over)) - 1])
    closest = int(np.argmin(over))
    layers = " to ".join(dict.fromkeys((table.layers[block][0], table.layers[block][-1])))
    where = f"block {block + 1} of {blocks} (counted from the output: {layers})"
    if not fits[:, block].any():
        first = (
            f"no device can hold {where}: {fleet.device[closest].name!r} comes closest and lacks "
            f"{over[closest] / MB:,.0f} MB of {memory[closest, block] / MB:,.0f} MB"
        )
    else:
        have = int(fits[:, block].sum())
        plural = "device holds" if have == 1 else "devices hold"
        wanted = f"{needed[block]} device{'s' if needed[block] > 1 else ''}"
        first = f"the blocks from {where} on need {wanted}, and only {have} {plural} it"
        if math.isfinite(over[nearest]):
            first += f"; {fleet.device[nearest].name!r} lacks {over[nearest] / MB:,.0f} MB for it"
        else:
            first += f"; the fleet has {len(fleet.device)} in all"
    target = nearest if math.isfinite(over[nearest]) else closest
    remedies = _remedies(fleet, table, target, block, together) if math.isfinite(over[target]) else []
    remedies.append(_fewer_blocks(fits, copies, blocks) if not together else "")
    lines = [f"no plan: {first}", *(f"  - {remedy}" for remedy in remedies if remedy)]
    return InfeasiblePlan(block, missing, "\n".join(lines))


def _unreachable(error: InfeasiblePlan, fleet: Fleet, costs: Costs, link: Link, copies: int) -> InfeasiblePlan:
    """Memory is not the reason, so it is the link, or the number of devices."""
    bits = float(costs.bits.max())
    reaches = np.isfinite(upload_seconds(link, np.arange(len(fleet.device)), bits, np.inf))
    silent = [device.name for device, can in zip(fleet.device, reaches, strict=True) if not can]
    names = ", ".join(repr(name) for name in silent)
    reason = f"no plan: {error}" if not silent else f"no plan: {names} cannot reach the server at all, so {error}"
    return InfeasiblePlan(error.block // copies, error.shortfall, reason)


def _remedies(fleet: Fleet, table: BlockTable, index: int, block: int, together: bool) -> list[str]:
    """What would let device ``index`` hold ``block``: a smaller batch, checkpointing."""
    device = fleet.device[index]
    room = device.memory_bytes - device.reserved_bytes
    if device.measured is not None:
        return [f"measure {device.name!r} again with a smaller --batch-size than {device.measured.batch_sequences}"]

    def needs(sequences: int, checkpointing: bool = False) -> float:
        return float(step_bytes(table, sequences * table.sequence_tokens, together, checkpointing)[block])

    remedies = []
    batch = next((n for n in range(device.batch_sequences - 1, 0, -1) if needs(n) <= room), None)
    if batch is not None:
        remedies.append(f"batch_sequences = {batch} instead of {device.batch_sequences} fits on {device.name!r}")
    checkpointed = needs(device.batch_sequences, checkpointing=True)
    if checkpointed <= room:
        remedies.append(
            f"gradient checkpointing fits on {device.name!r} ({checkpointed / MB:,.0f} MB, about a third more compute)"
        )
    if not remedies:
        remedies.append(
            f"{device.name!r} cannot hold it at any batch: one sequence with checkpointing takes "
            f"{needs(1, checkpointing=True) / MB:,.0f} MB of its {room / MB:,.0f} MB"
        )
    return remedies


def _fewer_blocks(fits: NDArray[np.bool_], copies: int, blocks: int) -> str:
    """Fewer blocks need fewer devices; the deepest still reaches the input, so one device must hold that."""
    deep = int(fits[:, -1].sum())
    most = deep // copies
    holds = "device holds" if deep == 1 else "devices hold"
    return f"--blocks {most} fits: {deep} {holds} the deepest block" if 0 < most < blocks else ""
