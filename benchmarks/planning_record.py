"""What the planning benchmarks share: random instances, and a result that says how it came about."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from taskedge.planning import ShannonLink

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"


def machine() -> dict[str, Any]:
    """The machine in plain words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
        "load_at_start": os.getloadavg()[0],
        "system": platform.platform(),
    }


def save(name: str, results: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes ``benchmarks/results/NAME.json``: how it was measured, then the figures."""
    record = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": about,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("numpy", "scipy", "matplotlib")}},
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def spread(values: Any) -> dict[str, float]:
    """Mean, standard deviation and quantiles."""
    array = np.asarray(values, dtype=float)
    quantiles = {f"p{q}": float(np.percentile(array, q)) for q in (5, 50, 95)}
    return {"mean": float(array.mean()), "std": float(array.std()), **quantiles, "worst": float(array.max())}


def draw(rng: np.random.Generator, devices: int, blocks: int) -> tuple[Any, ...]:
    """A radio instance: log-normal speeds (sigma 0.6), seconds that grow with depth, 3 in 10 devices short of memory,
    payloads of 0.02 to 20 Mbit per block, snr_hz log-uniform in 1e6 .. 1e9, bands of 1 to 32 MHz."""
    speed = rng.lognormal(0, 0.6, devices)
    compute = np.sort((1 + np.arange(blocks)) * rng.uniform(0.02, 0.2) / speed[:, None], axis=1)
    reach = np.where(rng.random(devices) < 0.3, rng.integers(1, blocks + 1, devices), blocks)
    reach[rng.permutation(devices)[:blocks]] = blocks
    fits = np.arange(blocks) < reach[:, None]
    bits = rng.uniform(0.2, 2, blocks) * 10 ** rng.uniform(5, 7)
    return compute, fits, bits, ShannonLink(10 ** rng.uniform(6, 9, devices)), 10 ** rng.uniform(6, 7.5)
