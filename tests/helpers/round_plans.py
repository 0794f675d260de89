"""Shared by the tests of round_tasks and its neighbours."""

import numpy as np

from taskedge.cooperation.scheduling.round_tasks import shares
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.link_models import FixedRateLink


def costs(devices, blocks, seed=0, capacity=None):
    draw = np.random.default_rng(seed)
    speed = draw.uniform(1, 4, devices)
    return Costs(
        down=np.full(devices, 0.1),
        compute=speed[:, None] * np.arange(1, blocks + 1),
        memory=np.tile(np.arange(1.0, blocks + 1), (devices, 1)),
        extra=np.full((devices, blocks), 0.01),
        capacity=np.full(devices, 100.0) if capacity is None else np.array(capacity, dtype=float),
        bits=np.full(blocks, 1000.0),
    )


def plan(mode, devices, blocks, *, active=None, seed=0, capacity=None, draw=0, **more):
    link = FixedRateLink(np.full(devices, 1e4))
    names = [f"d{k}" for k in range(devices)]
    active = list(range(1, blocks + 1)) if active is None else active
    found = costs(devices, blocks, seed, capacity)
    return shares(mode, names, found, link, 1e6, active, head_bits=500.0, seed=draw, **more)


def holders(found):
    return {
        block: [one.device for one in found if block in one.blocks]
        for block in sorted({b for one in found for b in one.blocks})
    }
