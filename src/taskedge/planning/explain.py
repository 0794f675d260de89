"""Explanation of an infeasible problem: the block that no device can hold, the missing memory, and remedies."""

from __future__ import annotations

import math

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_costs import FleetCosts, step_bytes
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.link_models import Bools, Link
from taskedge.planning.problem import InfeasiblePlan, upload_seconds

MB = 1e6


def explain_infeasible(
    error: InfeasiblePlan,
    fleet: FleetSpec,
    table: BlockTable,
    costs: FleetCosts,
    link: Link,
    copies: int = 1,
    together: bool = False,
) -> InfeasiblePlan:
    """Return the error with the names of the layers, the missing megabytes, and remedies.

    n blocks from a depth on need n devices that hold that depth: memory rises with depth, so the sets of devices are
    nested, and this is Hall's condition. The message is about the deepest block for which there are too few devices.

    Args:
        error: raised by a solver.
        fleet: devices.
        table: blocks of the model.
        costs: of the devices for the blocks.
        link: the uplinks.
        copies: devices that train each block.
        together: whether a device holds all blocks down to its deepest one.
    """
    memory = costs.memory_together if together else costs.memory
    fits = memory <= costs.capacity[:, None]
    blocks = len(table)
    needed = np.minimum(copies * np.arange(blocks, 0, -1), 1 if together else copies * blocks)  # from depth b on
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


def _unreachable(error: InfeasiblePlan, fleet: FleetSpec, costs: FleetCosts, link: Link, copies: int) -> InfeasiblePlan:
    """Return the error where memory is not the reason: the links, or the number of devices."""
    bits = float(costs.bits.max())
    reaches = np.isfinite(upload_seconds(link, np.arange(len(fleet.device)), bits, np.inf))
    silent = [device.name for device, can_send in zip(fleet.device, reaches, strict=True) if not can_send]
    names = ", ".join(repr(name) for name in silent)
    reason = f"no plan: {names} cannot reach the server at all, so {error}" if silent else f"no plan: {error}"
    return InfeasiblePlan(error.block // copies, error.shortfall, reason)


def _remedies(fleet: FleetSpec, table: BlockTable, index: int, block: int, together: bool) -> list[str]:
    """Return changes that let device ``index`` hold ``block``: a smaller batch, gradient checkpointing."""
    device = fleet.device[index]
    available = device.memory_bytes - device.reserved_bytes
    if device.measured is not None:
        return [f"measure {device.name!r} again with a smaller --batch-size than {device.measured.batch_sequences}"]

    def needed(sequences: int, checkpointing: bool = False) -> float:
        return float(step_bytes(table, sequences * table.sequence_tokens, together, checkpointing)[block])

    remedies = []
    batch = next((n for n in range(device.batch_sequences - 1, 0, -1) if needed(n) <= available), None)
    if batch is not None:
        remedies.append(f"batch_sequences = {batch} instead of {device.batch_sequences} fits on {device.name!r}")
    checkpointed = needed(device.batch_sequences, checkpointing=True)
    if checkpointed <= available:
        remedies.append(
            f"gradient checkpointing fits on {device.name!r} ({checkpointed / MB:,.0f} MB, about a third more compute)"
        )
    if not remedies:
        remedies.append(
            f"{device.name!r} cannot hold it at any batch: one sequence with checkpointing takes "
            f"{needed(1, checkpointing=True) / MB:,.0f} MB of its {available / MB:,.0f} MB"
        )
    return remedies


def _fewer_blocks(fits: Bools, copies: int, blocks: int) -> str:
    """Return the number of blocks that would fit. The deepest block reaches the input however few there are."""
    deep = int(fits[:, -1].sum())
    max_blocks = deep // copies
    if not 0 < max_blocks < blocks:
        return ""
    return f"--blocks {max_blocks} fits: {deep} {'device holds' if deep == 1 else 'devices hold'} the deepest block"
