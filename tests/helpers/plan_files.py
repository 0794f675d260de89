"""Plan files with an assignment, and figures that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskedge.planning.plan import Plan


def plan_of(
    assignment: Mapping[str, Sequence[int]], layers: Sequence[Sequence[str]], idle: Sequence[str] = (), **changes: Any
) -> Plan:
    """A plan in which each device trains the blocks that ``assignment`` gives it."""
    figures = {"bandwidth_hz": 1e5, "down_seconds": 0.0, "compute_seconds": 1.0, "up_seconds": 0.1}
    figures |= {"memory_bytes": 1.0, "capacity_bytes": 1e9}
    fields: dict[str, Any] = {
        "model": "tiny",
        "model_digest": "0",
        "budget": "0.1%",
        "solver": "joint",
        "stopped": "done",
        "iterations": 1,
        "bandwidth_hz": 1e6,
        "aggregation_seconds": 0.0,
        "latency_seconds": 1.0,
        "lower_bound_seconds": 1.0,
        "gap_ratio": 0.0,
        "blocks": [{"layers": list(names), "trained_values": 1.0, "upload_bits": 32.0} for names in layers],
        "parts": [
            {"device": device, "blocks": list(blocks), "reaches_layer": max(blocks), **figures}
            for device, blocks in assignment.items()
        ],
        "idle": list(idle),
        "compared_seconds": {},
        "notes": [],
    }
    return Plan.model_validate(fields | changes)
