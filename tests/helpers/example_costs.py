"""Example costs for the tests of step_cost and its neighbors."""

from __future__ import annotations

from taskedge.training.memory.step_cost import ConfigCost, PeakMemory

MEMORY = PeakMemory(process=400, base=100, runtime=30, entries=5, head=2, saved=60, temporary=8)


def cost(**changes):
    figures = {"config": "as configured", "changes": {}, "exact": True, "allowed": True, "memory": MEMORY}
    figures |= {"seconds": 2.0, "cpu_seconds": 1.5, "steps": 10, "threads": 1}
    return ConfigCost(**figures | changes)
