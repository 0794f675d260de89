"""Random instances and the machine record that the planning benchmarks share."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from benchmarks import record
from taskedge.planning import ShannonLink


def machine() -> dict[str, Any]:
    """Return the machine, its load, and the versions of the packages that solve plans."""
    about = record.machine(packages=("numpy", "scipy", "matplotlib"))
    return about | {"cores": os.cpu_count(), "load_at_start": os.getloadavg()[0], "system": platform.platform()}


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
