"""Follow a plan file: its blocks on its devices, with its shares of the bandwidth.

Only the assignment is taken from the file. Costs, and with them predictions and deadlines, are those of the run, with
its support, its number format and its calibration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.cooperation.scheduling.assign_blocks import make_task
from taskedge.errors import InputError
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.link_models import Link
from taskedge.planning.plan import Plan


def check_plan_blocks(plan: Plan, table: BlockTable) -> None:
    """Check that a plan has the blocks of a run.

    Raises:
        InputError: It has others.
    """
    planned = [tuple(block.layers) for block in plan.blocks]
    if planned != [tuple(layers) for layers in table.layers]:
        raise InputError(
            f"the plan for {plan.model} has {len(planned)} blocks, not the {len(table)} of this model, or other layers "
            "in them: plan for the same model and the same --blocks"
        )


def plan_digest(plan: Plan | None) -> str:
    """Return the hex BLAKE2b (96 bit) of a plan's assignment; empty without a plan."""
    if plan is None:
        return ""
    assignment = [(part.device, part.blocks, part.bandwidth_hz) for part in plan.parts]
    return hashlib.blake2b(repr(assignment).encode(), digest_size=12).hexdigest()


def plan_obstacle(plan: Plan, names: Sequence[str], costs: FleetCosts) -> str:
    """Return why a plan cannot be followed now, or an empty string.

    Args:
        plan: The plan.
        names: The devices that are ready, the rows of ``costs``.
        costs: Costs of all blocks.
    """
    missing = [part.device for part in plan.parts if part.device not in names]
    if missing:
        return f"not ready: {', '.join(sorted(missing))}"
    for part in plan.parts:
        device = names.index(part.device)
        needed, available = costs.memory_of_blocks(device, [block - 1 for block in part.blocks]), costs.capacity[device]
        if needed > available:
            return f"{part.device} cannot hold its blocks: {needed / 1e6:.0f} MB of {available / 1e6:.0f} MB"
    return ""


def tasks_of_plan(
    plan: Plan,
    names: Sequence[str],
    costs: FleetCosts,
    link: Link,
    active: Sequence[int],
    *,
    head: str,
    head_bits: float,
) -> list[RoundTask]:
    """Return the tasks of a plan that has no obstacle. Arguments: see :func:`assign_blocks.assign_blocks`.

    Blocks that are not ``active`` are left out, and devices that have only such blocks get no task.
    """
    tasks = []
    for part in sorted(plan.parts, key=lambda part: names.index(part.device)):
        blocks = tuple(sorted(set(part.blocks) & set(active)))
        if blocks:
            with_head = head == "every" or min(active) in blocks
            device = names.index(part.device)
            task = make_task(
                part.device, device, blocks, part.bandwidth_hz, costs, link, head_bits if with_head else 0.0
            )
            tasks.append(task)
    return tasks
