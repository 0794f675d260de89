"""Input and output of the solvers: checked arguments, plans, and the error for an infeasible problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.link_models import Bools, Floats, Ints, Link


class InfeasiblePlan(TaskEdgeError):
    """No assignment exists.

    Attributes:
        block: a column that cannot be placed.
        shortfall: number of missing devices.
    """

    exit_code = 3

    def __init__(self, block: int, shortfall: int, reason: str) -> None:
        self.block, self.shortfall = int(block), int(shortfall)
        super().__init__(reason)


@dataclass(frozen=True)
class Assignment:
    """A device, the blocks that it trains, and its share of the band.

    Attributes:
        device: row of the cost tables.
        blocks: columns of the cost tables, shallow first.
        bandwidth: Hz.
    """

    device: int
    blocks: tuple[int, ...]
    bandwidth: float


@dataclass(frozen=True, eq=False)
class BlockMemory:
    """Memory of the devices for sets of blocks.

    A device holds a set of blocks if ``alone`` of the deepest one and ``extra`` of all others are within ``capacity``.

    Attributes:
        alone: ``[K, L]`` bytes while the device trains this block only.
        extra: ``[K, L]`` bytes that this block adds if the device also trains a deeper one.
        capacity: ``[K]`` bytes of the device.
    """

    alone: Floats
    extra: Floats
    capacity: Floats

    def select(self, devices: Any, columns: Any) -> BlockMemory:
        """Return the memory of some devices for some blocks (indices into rows and columns)."""
        return BlockMemory(self.alone[devices][:, columns], self.extra[devices][:, columns], self.capacity[devices])


@dataclass(frozen=True, eq=False)
class Matching:
    """A matching of blocks and devices at given latencies.

    Attributes:
        device_of_block: ``[L]`` device of every block.
        latency: seconds of the slowest pair.
        method: ``"crunch"``, or ``"bottleneck"`` if the latencies were not monotone in depth.
    """

    device_of_block: Ints
    latency: float
    method: str = "crunch"


@dataclass(frozen=True, eq=False)
class JointPlan:
    """An assignment of blocks to devices, with the bandwidth of each upload.

    Attributes:
        device_of_block: ``[L]`` device of every block; a device that takes several blocks appears several times.
        bandwidth_of_block: ``[L]`` Hz; the bandwidth of a device is the sum over its blocks. Wired uploads have 0.
        latency: seconds of the round.
        lower_bound: seconds that no plan of the solver's class can beat; 0 from solvers without a bound. The class of
            ``exact`` and ``several`` has idle devices and several blocks on a device, that of ``one-each`` and
            ``dual-ascent`` a device of its own for each block.
        iterations: steps of the solver.
        stopped: ``"optimal"``, ``"closed"`` (gap below the tolerance), ``"cap"`` (iterations ran out), ``"heuristic"``
            (no guarantee) or ``"spread"`` (slower as allowed, on more devices).
        replicas: further devices that train the same blocks (FedAvg).
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
        """``(latency - lower_bound) / latency``: an upper limit of what a better plan could save, from 0 to 1."""
        return max(0.0, 1.0 - self.lower_bound / self.latency) if self.latency > 0 else 0.0

    def assignments(self) -> list[Assignment]:
        """Return one assignment for each device, in order of device, replicas last."""
        return [
            Assignment(
                int(device),
                tuple(int(b) for b in np.flatnonzero(self.device_of_block == device)),
                float(self.bandwidth_of_block[self.device_of_block == device].sum()),
            )
            for device in np.unique(self.device_of_block)
        ] + list(self.replicas)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "device_of_block": [int(d) for d in self.device_of_block],
            "bandwidth_of_block_hz": [float(w) for w in self.bandwidth_of_block],
            "latency_seconds": self.latency,
            "lower_bound_seconds": self.lower_bound,
            "gap": self.gap,
            "iterations": self.iterations,
            "stopped": self.stopped,
            "replicas": [
                {"device": replica.device, "blocks": list(replica.blocks), "bandwidth_hz": replica.bandwidth}
                for replica in self.replicas
            ],
        }


@dataclass(frozen=True, eq=False)
class Instance:
    """Checked arguments of a solver, for K devices and L blocks.

    Attributes:
        compute: ``[K, L]`` seconds before the upload.
        fits: ``[K, L]`` whether the device can hold the block.
        bits: ``[L]`` upload of each block.
        link: the uplinks.
        bandwidth: Hz of the shared band.
        memory: for several blocks on a device; None if any blocks that fit one by one fit together.
        copy_of: ``[L]`` a device takes at most one of the columns with the same number; None if all may go together.
    """

    compute: Floats
    fits: Bools
    bits: Floats
    link: Link
    bandwidth: float
    memory: BlockMemory | None = None
    copy_of: Ints | None = None

    @property
    def devices(self) -> int:
        """Number of devices, K."""
        return int(self.compute.shape[0])

    @property
    def blocks(self) -> int:
        """Number of blocks, L."""
        return int(self.compute.shape[1])


def check_instance(
    compute: ArrayLike,
    fits: ArrayLike,
    bits: ArrayLike,
    link: Link,
    bandwidth: float,
    memory: BlockMemory | None = None,
    copy_of: ArrayLike | None = None,
) -> Instance:
    """Return the arguments of a solver as arrays.

    Raises:
        InputError: wrong shapes, negative or NaN figures, a band that is not positive. The message names every fault.
    """
    seconds, mask, faults = check_table("compute", compute, fits)
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
    if memory is not None and seconds.ndim == 2:
        shapes = memory.alone.shape, memory.extra.shape, (*memory.capacity.shape, seconds.shape[1])
        faults += [
            f"memory must have the shape of compute, {seconds.shape}, not {s}" for s in {*shapes} - {seconds.shape}
        ]
    groups = None if copy_of is None else np.asarray(copy_of, dtype=np.intp)
    if groups is not None and groups.shape != payload.shape:
        faults.append(f"copy_of must hold one number per block, shape {payload.shape}, not {groups.shape}")
    if faults:
        raise InputError("; ".join(faults))
    return Instance(seconds, mask, payload, link, float(bandwidth), memory, groups)


def check_table(name: str, seconds: ArrayLike, fits: ArrayLike, scan: bool = True) -> tuple[Floats, Bools, list[str]]:
    """Return a ``[K, L]`` table of seconds, its mask, and their faults. ``inf`` seconds mean "never".

    Args:
        name: name of the table in messages.
        seconds: the table.
        fits: the mask.
        scan: also look for negative and NaN seconds.
    """
    table, mask = np.asarray(seconds, dtype=np.float64), np.asarray(fits, dtype=bool)
    faults = []
    if table.ndim != 2 or 0 in table.shape:
        faults.append(f"{name} must have shape [devices, blocks] with at least one of each, not {table.shape}")
    if mask.shape != table.shape:
        faults.append(f"fits must have the shape of {name}, {table.shape}, not {mask.shape}")
    elif scan and not faults and not table.min() >= 0:  # NaN fails every comparison, so this finds it too
        row, column = np.argwhere(~(table >= 0))[0]
        faults.append(f"{name} must not be negative or NaN; device {row}, block {column} has {table[row, column]}")
    return table, mask, faults


def upload_seconds(link: Link, device: ArrayLike, bits: ArrayLike, bandwidth: ArrayLike) -> Floats:
    """Return the seconds to send ``bits``: 0 for an empty payload, ``inf`` at rate 0. Arguments broadcast."""
    rate, payload = np.broadcast_arrays(link.rate(device, bandwidth), np.asarray(bits, dtype=np.float64))
    with np.errstate(all="ignore"):
        return np.where(payload > 0, payload / rate, 0.0)


def finish_seconds(plan: JointPlan, compute: ArrayLike, bits: ArrayLike, link: Link) -> Floats:
    """Return ``[L]`` seconds after which each block's device is done.

    A device computes as long as its slowest block takes, then sends the payload of all of its blocks.
    """
    table, payload = np.asarray(compute, dtype=np.float64), np.asarray(bits, dtype=np.float64)
    done = np.zeros(plan.device_of_block.size)
    for assignment in plan.assignments():
        if assignment in plan.replicas:
            continue
        blocks = list(assignment.blocks)
        upload = upload_seconds(link, assignment.device, payload[blocks].sum(), assignment.bandwidth)
        done[blocks] = table[assignment.device, blocks].max() + float(upload)
    return done
