"""Let devices also answer for blocks that their backward pass traverses anyway. Source: this project.

Backpropagation to a block traverses every block nearer to the loss. The gradients of their few entries cost next to
nothing beside it, except for their upload. So a task gets more of the blocks that it traverses, as long as the round
stays within its time and the device has the memory. These blocks learn from more data in the same round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.planning.fleet_costs import FleetCosts


def add_traversed_blocks(
    tasks: Sequence[RoundTask], active: Sequence[int], names: Sequence[str], costs: FleetCosts, max_seconds: float
) -> list[RoundTask]:
    """Return the tasks, each with the active blocks that it traverses and has time and memory for.

    Deep blocks are added first, since the fewest devices traverse them. A device keeps its bandwidth.

    Args:
        tasks: The planned tasks.
        active: Depths of the blocks that train in this round.
        names: Devices, the rows of ``costs``.
        costs: Costs of all blocks.
        max_seconds: Limit for a task with added blocks. A task that takes longer already gets none.
    """
    return [_extend(task, active, names.index(task.device), costs, max_seconds) for task in tasks]


def _extend(task: RoundTask, active: Sequence[int], device: int, costs: FleetCosts, max_seconds: float) -> RoundTask:
    extended = task
    for block in sorted(active, reverse=True):
        if block >= task.deepest or block in task.blocks:
            continue
        blocks = tuple(sorted((*extended.blocks, block)))
        up_seconds = extended.up_seconds + float(costs.bits[block - 1]) / task.uplink_bits_per_second
        candidate = replace(extended, blocks=blocks, up_seconds=up_seconds)
        columns = [depth - 1 for depth in blocks if depth]
        if candidate.seconds <= max_seconds and costs.memory_of_blocks(device, columns) <= costs.capacity[device]:
            extended = candidate
    return extended
