"""Shared by the tests of step_cost and its neighbours."""

from __future__ import annotations

from taskedge.training.memory.step_cost import Cost, Memory

MEMORY = Memory(process=400, base=100, runtime=30, entries=5, head=2, saved=60, temporary=8)


def cost(**more):
    fixed = {"way": "as it is", "changes": {}, "exact": True, "allowed": True, "memory": MEMORY}
    return Cost(**fixed | {"seconds": 2.0, "cpu_seconds": 1.5, "steps": 10, "threads": 1} | more)
