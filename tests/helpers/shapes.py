"""Small fleets and block tables with figures that can be checked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taskedge.backbone.cost_table import BlockTable
from taskedge.planning.fleet_file import parse_fleet
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.profiling.profile_file import Energy, Machine, MeasuredDepth, Profile


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


def fleet(*devices: dict[str, Any], **changes: Any) -> FleetSpec:
    return parse_fleet(raw_fleet(*devices, **changes), Path("fleet.toml"))


def profile(**changes: Any) -> Profile:
    """A profile of the model of :func:`table`."""
    figures: dict[str, Any] = {
        "model": "toy",
        "model_digest": "abc",
        "trained": "1 entry per neuron",
        "batch_sequences": 2,
        "sequence_tokens": 8,
        "machine": Machine(name="m", accelerator="cpu", threads=1, memory_bytes=1e9, torch="2"),
        "gemm_peak_flops_per_second": 1e9,
        "forward_flops_per_second": 1e8,
        "backward_flops_per_second": 1e8,
        "forward_mfu_ratio": 0.1,
        "backward_mfu_ratio": 0.1,
        "tokens_per_second": 1.0,
        "idle_bytes": 1.0,
        "measured": [MeasuredDepth(depth=1, seconds=1.0, seconds_quartiles=[1.0, 1.0], peak_bytes=5.0)],
        "step_seconds": [1.0, 2.0, 3.0],
        "peak_bytes": [5e8, 7e8, 2e9],
        "energy": Energy(source="none"),
    }
    return Profile(**figures | changes)
