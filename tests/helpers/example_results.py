"""A plan and a simulation as plain values, for the tests of text and pictures."""

from __future__ import annotations

PLAN = {
    "model": "toy",
    "solver": "joint",
    "aggregation_seconds": 0.1,
    "latency_seconds": 2.1,
    "lower_bound_seconds": 2.0,
    "gap_ratio": 0.05,
    "blocks": [{"layers": ["a"], "trained_values": 10.0, "upload_bits": 320.0}],
    "parts": [
        {
            "device": "phone & <co>",
            "blocks": [1],
            "reaches_layer": 1,
            "bandwidth_hz": 1e6,
            "down_seconds": 0.1,
            "compute_seconds": 1.5,
            "up_seconds": 0.4,
            "memory_bytes": 1e9,
            "capacity_bytes": 2e9,
        }
    ],
    "idle": ["spare"],
    "notes": ["a note"],
    "compared_seconds": {"equal": 4.2, "fedavg": None, "exact": 2.0},
}

ROUNDS = {
    "model": "toy",
    "rounds": 3,
    "devices": 2,
    "fading": "rayleigh",
    "churn": 0.1,
    "seed": 0,
    "devices_present": [2, 1, 2],
    "latency_seconds": {"joint": [1.0, None, 2.0], "equal": [2.0, None, 30.0], "never": [None, None, None]},
    "summary": {
        "joint": {
            "mean_seconds": 1.5,
            "median_seconds": 1.5,
            "p95_seconds": 2.0,
            "worst_seconds": 2.0,
            "rounds_without_plan": 1,
            "saved_ratio": 0.0,
        },
        "never": {
            "mean_seconds": None,
            "median_seconds": None,
            "p95_seconds": None,
            "worst_seconds": None,
            "rounds_without_plan": 3,
            "saved_ratio": None,
        },
    },
}
