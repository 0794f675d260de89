"""What a solver is given and what it hands back: checked input, plans, and the error for what cannot be planned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.link_models import Bools, Floats, Ints, Link


class InfeasiblePlan(TaskEdgeError):
    """No assignment exists. ``block`` is a column that cannot be placed, ``shortfall`` how many devices are missing."""

    exit_code = 3

    def __init__(self, block: int, shortfall: int, reason: str) -> None:
        self.block, self.shortfall = int(block), int(shortfall)
        super().__init__(reason)


@dataclass(frozen=True)
class Assignment:
    """One device's part of a plan: the blocks (columns, shallow first) it trains and its share of the band in Hz."""

    device: int
    blocks: tuple[int, ...]
    bandwidth: float


@dataclass(frozen=True, eq=False)
class Matching:
    """Blocks on devices at given latencies: ``device_of_block[L]``, ``latency`` in seconds.

    ``method`` is ``"crunch"``, or ``"bottleneck"`` where the latencies were not monotone in depth.
    """

    device_of_block: Ints
    latency: float
    method: str = "crunch"


@dataclass(frozen=True, eq=False)
class JointPlan:
    """Blocks on devices together with the bandwidth of each upload.

    Attributes:
        device_of_block: ``[L]`` device of every block; a device may return where it takes several blocks.
        bandwidth_of_block: ``[L]`` Hz; what a device has is the sum over its blocks. Wired uploads have 0.
        latency: seconds of the round that this plan really takes.
        lower_bound: seconds that no plan can beat; 0 from solvers that claim none.
        iterations: steps of the solver.
        stopped: ``"optimal"``, ``"closed"`` (gap below the tolerance), ``"stalled"``, ``"cap"`` (iterations ran out)
            or ``"heuristic"`` (the solver promises nothing).
        replicas: devices that train blocks beside those of ``device_of_block`` (FedAvg).
    """

    device_of_block: Ints
    bandwidth_of_block: Floats
    latency: float
    lower_bound: float
    iterations: int = 1
    stopped: str = "heuristic"
    replicas: tuple[Assignment, ...] = field(default=())

    @property
    def gap(self) -> float:
        """``(latency - lower_bound) / latency``: the most that a better plan could still save, 0 to 1."""
        return max(0.0, 1.0 - self.lower_bound / self.latency) if self.latency > 0 else 0.0

    def assignments(self) -> list[Assignment]:
        """The plan device by device, in order of device; replicas last."""
        return [
            Assignment(
                int(device),
                tuple(int(b) for b in np.flatnonzero(self.device_of_block == device)),
                float(self.bandwidth_of_block[self.device_of_block == device].sum()),
            )
            for device in np.unique(self.device_of_block)
        ] + list(self.replicas)

    def to_dict(self) -> dict[str, Any]:
        """Plain figures for JSON."""
        return {
            "device_of_block": [int(d) for d in self.device_of_block],
            "bandwidth_of_block_hz": [float(w) for w in self.bandwidth_of_block],
            "latency_seconds": self.latency,
            "lower_bound_seconds": self.lower_bound,
            "gap": self.gap,
            "iterations": self.iterations,
            "stopped": self.stopped,
            "replicas": [
                {"device": r.device, "blocks": list(r.blocks), "bandwidth_hz": r.bandwidth} for r in self.replicas
            ],
        }


@dataclass(frozen=True, eq=False)
class Instance:
    """A solver's checked arguments: ``compute[K, L]`` s, ``fits[K, L]``, ``bits[L]``, the link, ``bandwidth`` Hz."""

    compute: Floats
    fits: Bools
    bits: Floats
    link: Link
    bandwidth: float

    @property
    def devices(self) -> int:
        return int(self.compute.shape[0])

    @property
    def blocks(self) -> int:
        return int(self.compute.shape[1])


def check_instance(compute: ArrayLike, fits: ArrayLike, bits: ArrayLike, link: Link, bandwidth: float) -> Instance:
    """Returns the arguments as arrays.

    Raises:
        InputError: naming every fault at once: shapes, negative or NaN figures, a band that is not positive.
    """
    seconds, holds, faults = check_table("compute", compute, fits)
    payload = np.asarray(bits, dtype=np.float64)
    if seconds.ndim == 2:
        if payload.shape != (seconds.shape[1],):
            faults.append(f"bits must hold one figure per block, shape {(seconds.shape[1],)}, not {payload.shape}")
        if link.devices != seconds.shape[0]:
            faults.append(f"the link serves {link.devices} devices, compute has {seconds.shape[0]} rows")
    bad = np.flatnonzero(~(np.isfinite(payload) & (payload >= 0)))
    if bad.size:
        faults.append(f"bits must be finite and not negative; block {bad[0]} has {payload.flat[bad[0]]}")
    if not (np.isfinite(bandwidth) and bandwidth > 0):
        faults.append(f"bandwidth must be a positive number of Hz, not {bandwidth}")
    if faults:
        raise InputError("; ".join(faults))
    return Instance(seconds, holds, payload, link, float(bandwidth))


def check_table(name: str, seconds: ArrayLike, fits: ArrayLike, scan: bool = True) -> tuple[Floats, Bools, list[str]]:
    """A ``[K, L]`` table of seconds and its mask, and what is wrong with them; ``inf`` means "never"."""
    table, holds = np.asarray(seconds, dtype=np.float64), np.asarray(fits, dtype=bool)
    faults = []
    if table.ndim != 2 or 0 in table.shape:
        faults.append(f"{name} must have shape [devices, blocks] with at least one of each, not {table.shape}")
    if holds.shape != table.shape:
        faults.append(f"fits must have the shape of {name}, {table.shape}, not {holds.shape}")
    elif scan and not faults and not table.min() >= 0:  # NaN fails every comparison, so this finds it too
        row, column = np.argwhere(~(table >= 0))[0]
        faults.append(f"{name} must not be negative or NaN; device {row}, block {column} has {table[row, column]}")
    return table, holds, faults


def upload_seconds(link: Link, device: ArrayLike, bits: ArrayLike, bandwidth: ArrayLike) -> Floats:
    """Seconds to send ``bits``; 0 for an empty payload, ``inf`` at rate 0. Arguments broadcast."""
    rate, payload = np.broadcast_arrays(link.rate(device, bandwidth), np.asarray(bits, dtype=np.float64))
    with np.errstate(all="ignore"):
        return np.where(payload > 0, payload / rate, 0.0)


def finish_seconds(plan: JointPlan, compute: ArrayLike, bits: ArrayLike, link: Link) -> Floats:
    """``[L]`` seconds at which each block's device is done: its deepest block's compute, then its whole payload."""
    table, payload = np.asarray(compute, dtype=np.float64), np.asarray(bits, dtype=np.float64)
    done = np.zeros(plan.device_of_block.size)
    for part in plan.assignments():
        if part in plan.replicas:
            continue
        mine = list(part.blocks)
        upload = upload_seconds(link, part.device, payload[mine].sum(), part.bandwidth)
        done[mine] = table[part.device, mine].max() + float(upload)
    return done
