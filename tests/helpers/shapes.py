"""Small fleets and block tables with figures that can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_spec import Fleet, parse_fleet


def table(layers: int = 3, **changes: Any) -> BlockTable:
    """``layers`` equal layers: 100 FLOPs forward and 200 backward per token, 1 kB kept, 50 values each."""
    same = np.ones(layers)
    figures: dict[str, Any] = {
        "layers": tuple((f"layer.{layers - 1 - depth}",) for depth in range(layers)),
        "parameters": 1000 * same,
        "forward_flops": 100 * same,
        "backward_flops": 200 * same,
        "activation_bytes": 1000 * same,
        "input_bytes": 500 * same,
        "boundary_bytes": 100 * same,
        "payload_values": 50 * same,
        "other_forward_flops": 10.0,
        "base_bytes": 1e6,
        "sequence_tokens": 8,
        "model": "toy",
        "digest": "abc",
    }
    return BlockTable(**figures | changes)


def device(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A radio device row; ``None`` removes a key."""
    row: dict[str, Any] = {
        "name": name,
        "flops_per_second": 1e6,
        "utilisation_ratio": 0.5,
        "memory_bytes": 1e9,
        "tokens_per_round": 64,
        "batch_sequences": 2,
        "transmit_watts": 0.1,
        "gain_db": -90.0,
    }
    return {key: value for key, value in (row | changes).items() if value is not None}


def raw_fleet(*devices: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "server": {"downlink_bits_per_second": 1e6, "aggregation_seconds": 0.5},
        "channel": {"bandwidth_hz": 1e6},
        "model": {"path": "toy", "sequence_tokens": 8},
        "device": list(devices),
    }
    return rows | changes


def fleet(*devices: dict[str, Any], **changes: Any) -> Fleet:
    return parse_fleet(raw_fleet(*devices, **changes), Path("fleet.toml"))
