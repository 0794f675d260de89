"""Rotate blocks among devices, so that every block learns from every device's data. Source: this project.

A plan fixes which device trains which blocks, and is kept while nothing changes. Without rotation each block would see
one device's rows for the whole run, and with more devices than blocks some devices would never train. So each task
goes to the device that has trained its blocks least often, among those that have the memory and the time for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.link_models import Link
from taskedge.planning.problem import upload_seconds

Counts = Mapping[str, Mapping[int, int]]
"""How often each device has trained each block."""


def rotate_blocks(
    tasks: Sequence[RoundTask],
    names: Sequence[str],
    costs: FleetCosts,
    link: Link,
    counts: Counts,
    slack: float,
    head_bits: float,
) -> list[RoundTask]:
    """Return the blocks of ``tasks`` on the devices that have trained them least often.

    Tasks that few devices can take are placed first. If a task then finds no free device, the round stays as planned.

    Args:
        tasks: The planned tasks.
        names: Devices, the rows of ``costs``.
        costs: Costs of all blocks.
        link: Uplinks of the devices.
        counts: What devices have trained so far.
        slack: Fraction by which the round may take longer than planned.
        head_bits: Upload of the head [bit].

    Returns:
        As many tasks, of different devices, in the order of ``names``.
    """
    max_seconds = (1 + slack) * max(task.seconds for task in tasks)
    options = [(task, _devices_for(task, names, costs, link, head_bits, max_seconds)) for task in tasks]
    placed: dict[int, RoundTask] = {}
    for task, on_device in sorted(options, key=lambda option: len(option[1])):
        free = [k for k in on_device if k not in placed]
        if not free:
            return list(tasks)
        k = min(free, key=lambda k: (_count(counts, names[k], task.blocks), _count(counts, names[k]), k))
        placed[k] = on_device[k]
    return [placed[k] for k in sorted(placed)]


def update_counts(counts: Counts, tasks: Sequence[RoundTask]) -> dict[str, dict[int, int]]:
    """Return the counts after another round's tasks."""
    updated = {name: dict(blocks) for name, blocks in counts.items()}
    for task in tasks:
        of_device = updated.setdefault(task.device, {})
        for block in task.blocks:
            of_device[block] = of_device.get(block, 0) + 1
    return updated


def _devices_for(
    task: RoundTask, names: Sequence[str], costs: FleetCosts, link: Link, head_bits: float, max_seconds: float
) -> dict[int, RoundTask]:
    """Return the task as each device would have it, by row, for those with the memory and the time."""
    columns = [block - 1 for block in task.blocks if block]
    bits = float(costs.bits[columns].sum())
    if 0 in task.blocks:
        bits += head_bits
    on_device = {}
    for k, name in enumerate(names):
        moved = replace(
            task,
            device=name,
            uplink_bits_per_second=float(link.rate(k, task.bandwidth_hz)),
            down_seconds=float(costs.down[k]),
            compute_seconds=float(costs.compute[k, columns[-1]]),
            up_seconds=float(upload_seconds(link, k, bits, task.bandwidth_hz)),
        )
        if moved.seconds <= max_seconds and costs.memory_of_blocks(k, columns) <= costs.capacity[k]:
            on_device[k] = moved
    return on_device


def _count(counts: Counts, name: str, blocks: Sequence[int] | None = None) -> int:
    """Return how often a device has trained these blocks, or any. The head is in every task and does not count."""
    of_device = counts.get(name, {})
    return sum(times for block, times in of_device.items() if block and (blocks is None or block in blocks))
