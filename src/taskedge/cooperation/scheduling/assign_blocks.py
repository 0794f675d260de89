"""Assign blocks to devices for one round: from costs and a mode to each device's task. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.planning.bandwidth import share_bandwidth
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.link_models import Bools, Ints, Link
from taskedge.planning.plan import ANY_NUMBER, effective_solver, solve
from taskedge.planning.problem import Assignment, InfeasiblePlan, upload_seconds
from taskedge.planning.solvers import SOLVERS


def assign_blocks(
    mode: str,
    names: Sequence[str],
    costs: FleetCosts,
    link: Link,
    bandwidth: float,
    active: Sequence[int],
    *,
    copies: int = 2,
    solver: str = "exact",
    head: str = "every",
    head_bits: float = 0.0,
    seed: int = 0,
    spread_slack: float = 0.0,
) -> list[RoundTask]:
    """Plan a round of the blocks ``active`` on the devices ``names``.

    Args:
        mode: ``deft`` assigns each block to one device with the planner's ``solver``, which may leave devices without
            work. ``replicate`` assigns it to ``copies`` different devices (fewer if there are fewer devices).
            ``fedavg`` assigns all blocks to every device that can hold them.
        names: Devices, the rows of ``costs``.
        costs: Costs of all blocks.
        link: Uplinks of the devices.
        bandwidth: Of all uplinks together [Hz].
        active: Depths of the blocks that train.
        copies: See ``mode``.
        solver: See ``mode``.
        head: ``every``: each device with a task also trains the head. ``first``: only the devices with the first
            active block do.
        head_bits: Upload of the head [bit].
        seed: Seed of a solver that draws.
        spread_slack: Fraction by which the round may take longer so that idle devices take blocks of others.

    Returns:
        Tasks in the order of ``names``, without the devices that have none.

    Raises:
        InfeasiblePlan: No device can hold some block.
    """
    depths = sorted(active)
    columns = np.array([block - 1 for block in depths])
    active_costs = replace(
        costs,
        compute=costs.compute[:, columns],
        memory=costs.memory[:, columns],
        extra=costs.extra[:, columns],
        bits=costs.bits[columns] + (head_bits if head == "every" else 0.0),
    )
    copies = min(copies, len(names))
    assignments = _assignments(mode, active_costs, link, bandwidth, copies, solver, seed, spread_slack)
    tasks = []
    for assignment in sorted(assignments, key=lambda assignment: assignment.device):
        blocks = tuple(depths[column] for column in assignment.blocks)
        with_head = head == "every" or depths[0] in blocks
        device = assignment.device
        task = make_task(
            names[device], device, blocks, assignment.bandwidth, costs, link, head_bits if with_head else 0.0
        )
        tasks.append(task)
    return tasks


def make_task(
    name: str,
    device: int,
    blocks: tuple[int, ...],
    bandwidth: float,
    costs: FleetCosts,
    link: Link,
    head_bits: float,
) -> RoundTask:
    """Return the task of one device, with its predicted seconds.

    Args:
        name: The device.
        device: Its row in ``costs`` and ``link``.
        blocks: Depths, shallow first, without the head.
        bandwidth: Of its uplink [Hz].
        costs: Costs of all blocks.
        link: Uplinks of the devices.
        head_bits: Upload of the head [bit]; 0 if the device does not train it.
    """
    bits = float(costs.bits[[block - 1 for block in blocks]].sum()) + head_bits
    return RoundTask(
        device=name,
        blocks=(0, *blocks) if head_bits else blocks,
        bandwidth_hz=bandwidth,
        uplink_bits_per_second=float(link.rate(device, bandwidth)),
        down_seconds=float(costs.down[device]),
        compute_seconds=float(costs.compute[device, blocks[-1] - 1]),
        up_seconds=float(upload_seconds(link, device, bits, bandwidth)),
    )


def device_flops(table: BlockTable, tasks: Sequence[RoundTask], tokens: Mapping[str, float]) -> float:
    """Return the FLOPs of all devices in a round: the forward pass, and backward to each device's deepest block.

    Args:
        table: Costs per token of the model's blocks.
        tasks: The round's tasks.
        tokens: Tokens of each device in the round.
    """
    forward = float(table.forward_flops.sum()) + table.other_forward_flops
    backward_to_depth = np.cumsum(table.backward_flops)
    return float(sum(tokens[task.device] * (forward + backward_to_depth[task.deepest - 1]) for task in tasks))


def _assignments(
    mode: str,
    costs: FleetCosts,
    link: Link,
    bandwidth: float,
    copies: int,
    solver: str,
    seed: int,
    spread_slack: float,
) -> list[Assignment]:
    """Return one assignment, with sorted columns, for each device that has any."""
    devices, blocks = costs.compute.shape
    if mode == "fedavg":
        return _columns_to_blocks(solve("fedavg", costs, link, bandwidth).assignments(), 1)
    if mode == "deft" or copies == 1:
        chosen = effective_solver(solver, devices, blocks)
        plan = solve(chosen, costs, link, bandwidth, seed=seed, spread_slack=spread_slack)
        return _columns_to_blocks(plan.assignments(), 1)
    if devices >= copies * blocks or SOLVERS.current_name(solver) in ANY_NUMBER:
        try:
            plan = solve(solver, costs, link, bandwidth, copies, seed, spread_slack)
            return _columns_to_blocks(plan.assignments(), copies)
        except InfeasiblePlan:
            if devices >= copies * blocks and SOLVERS.current_name(solver) not in ANY_NUMBER:
                raise
    return _layered_copies(costs, link, bandwidth, copies)


def _columns_to_blocks(assignments: Sequence[Assignment], copies: int) -> list[Assignment]:
    """Return the assignments with blocks for columns: with copies, column b of a plan is block ``b // copies``."""
    return [
        replace(assignment, blocks=tuple(sorted({column // copies for column in assignment.blocks})))
        for assignment in assignments
    ]


def _layered_copies(costs: FleetCosts, link: Link, bandwidth: float, copies: int) -> list[Assignment]:
    """Place copies on few devices.

    Makes plan after plan, each without the pairs that are taken, then splits the band once. A block gets fewer copies
    if no other device can hold it.
    """
    devices, blocks = costs.compute.shape
    taken = np.zeros((devices, blocks), dtype=bool)
    for copy in range(copies):
        usable = costs.fits_together & ~taken
        # The first plan must place every block, or fail. Later ones place the blocks that still have a device.
        open_blocks = np.flatnonzero(usable.any(axis=0) if copy else np.ones(blocks, dtype=bool))
        if not open_blocks.size:
            break
        remaining = _restrict(costs, open_blocks, usable)
        taken[solve("several", remaining, link, bandwidth).device_of_block, open_blocks] = True
    busy = np.flatnonzero(taken.any(axis=1))
    compute = np.array([costs.busy[k, np.flatnonzero(taken[k])[-1]] for k in busy])
    bits = np.array([costs.bits[taken[k]].sum() for k in busy])
    _, bandwidths = share_bandwidth(compute, bits, busy, link, bandwidth)
    return [
        Assignment(int(k), tuple(np.flatnonzero(taken[k]).tolist()), float(hertz))
        for k, hertz in zip(busy, bandwidths, strict=True)
    ]


def _restrict(costs: FleetCosts, columns: Ints, usable: Bools) -> FleetCosts:
    """Return the costs of some blocks, with a memory that only the usable pairs fit."""
    memory = np.where(usable, 0.0, np.inf)[:, columns]
    return replace(
        costs,
        compute=costs.compute[:, columns],
        memory=memory,
        extra=np.zeros_like(memory),
        bits=costs.bits[columns],
    )
