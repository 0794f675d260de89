"""FleetCosts, links and planned tasks of small fleets, for the tests of scheduling."""

import numpy as np

from taskedge.cooperation.scheduling.assign_blocks import assign_blocks
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.link_models import FixedRateLink


def names(devices):
    return [f"d{k}" for k in range(devices)]


def costs(devices, blocks, seed=0, capacity=None, slow=()):
    """Devices of random speed; those in ``slow`` take 1000 times as long."""
    draw = np.random.default_rng(seed)
    speed = draw.uniform(1, 4, devices)
    speed[list(slow)] *= 1000
    return FleetCosts(
        down=np.full(devices, 0.1),
        compute=speed[:, None] * np.arange(1, blocks + 1),
        memory=np.tile(np.arange(1.0, blocks + 1), (devices, 1)),
        extra=np.full((devices, blocks), 0.01),
        capacity=np.full(devices, 100.0) if capacity is None else np.array(capacity, dtype=float),
        bits=np.full(blocks, 1000.0),
    )


def link(devices):
    return FixedRateLink(np.full(devices, 1e4))


def plan(mode, devices, blocks, *, active=None, seed=0, capacity=None, draw=0, slow=(), **more):
    """The tasks of a round, with a head of 500 bits."""
    active = list(range(1, blocks + 1)) if active is None else active
    of_fleet = costs(devices, blocks, seed, capacity, slow)
    return assign_blocks(mode, names(devices), of_fleet, link(devices), 1e6, active, head_bits=500.0, seed=draw, **more)


def holders(tasks):
    """The devices of every block."""
    return {
        block: [task.device for task in tasks if block in task.blocks]
        for block in sorted({block for task in tasks for block in task.blocks})
    }
