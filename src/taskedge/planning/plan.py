"""The plan: who trains which block with which share of the band, as a file that the run-time executes.

A plan is plain figures. Blocks are named by their depth (1 = nearest the loss) and by the layers they hold.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from taskedge.backbone.cost_table import BlockTable
from taskedge.errors import InputError
from taskedge.planning.explain import explain
from taskedge.planning.fleet_costs import Costs
from taskedge.planning.fleet_spec import Fleet
from taskedge.planning.link_models import FixedRateLink, Link, MixedLink, ShannonLink
from taskedge.planning.problem import Assignment, InfeasiblePlan, JointPlan, upload_seconds
from taskedge.planning.solvers import SOLVERS
from taskedge.profiling.profile_file import NotNegative, Positive, Row

Floats = NDArray[np.float64]

ONE_BLOCK_EACH = ("joint", "match", "exact")
"""Solvers that give every block a device of its own; with fewer devices than blocks ``several`` takes their place."""

ALL_BLOCKS = ("one-device", "fedavg")
"""Solvers whose devices train every block."""

TOGETHER = ("several", *ALL_BLOCKS)
"""Solvers that put several blocks on a device, which must hold them at the same time."""

BASELINES = ("random", "greedy", "hungarian", "equal", "match", "one-device", "fedavg")
"""What a plan is compared with; and with ``exact``, whose bound is the tightest."""


class Part(Row):
    """What one device does in a round."""

    device: str
    blocks: Annotated[list[int], Field(min_length=1)]  # depths, shallow first
    reaches_layer: int  # how many layers backpropagation goes through
    bandwidth_hz: NotNegative
    down_seconds: NotNegative
    compute_seconds: NotNegative
    up_seconds: NotNegative
    memory_bytes: NotNegative
    capacity_bytes: Positive

    @property
    def seconds(self) -> float:
        return self.down_seconds + self.compute_seconds + self.up_seconds


class Block(Row):
    """One trainable block; its depth is its place in the plan's list, from 1."""

    layers: list[str]
    trained_values: NotNegative
    upload_bits: NotNegative


class Plan(Row):
    """A round of cooperative training. ``latency_seconds`` includes the server's aggregation."""

    format: Literal["taskedge-plan-1"] = "taskedge-plan-1"
    model: str
    model_digest: str
    budget: str
    solver: str
    stopped: str
    iterations: int
    bandwidth_hz: Positive
    aggregation_seconds: NotNegative
    latency_seconds: NotNegative
    lower_bound_seconds: NotNegative
    gap_ratio: NotNegative
    blocks: list[Block]
    parts: list[Part]
    idle: list[str]
    compared_seconds: dict[str, float | None]  # None: that solver finds no plan
    notes: list[str]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def read_plan(path: Path) -> Plan:
    """Reads a plan file.

    Raises:
        InputError: it is missing, or is no plan; every fault is named.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"plan {path}: {error.strerror}; `taskedge plan --out {path.name}` makes one") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"plan {path} is not a plan that taskedge can use: {faults}") from None


def fleet_link(fleet: Fleet, gains: Floats | None = None) -> Link:
    """The uplinks of the fleet at power gains ``gains`` [K] (by default the mean ones)."""
    cable, snr = fleet.wired(), fleet.snr_hz(fleet.gains() if gains is None else gains)
    wired = np.isfinite(cable)
    if wired.all():
        return FixedRateLink(cable)
    radio = ShannonLink(np.where(wired, 0.0, snr))
    return MixedLink(radio, FixedRateLink(np.where(wired, cable, 0.0)), wired) if wired.any() else radio


def make_plan(
    fleet: Fleet,
    table: BlockTable,
    costs: Costs,
    solver: str = "joint",
    *,
    budget: str = "",
    copies: int = 1,
    compare: Sequence[str] = ("exact", *BASELINES),
    on_solver: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plans one round at the fleet's mean gains.

    Args:
        fleet, table, costs: who, what, and :func:`~taskedge.planning.fleet_costs.fleet_costs` of both.
        solver: a registered solver. With fewer devices than blocks, ``several`` replaces joint, match and exact.
        budget: recorded in the plan.
        copies: every block is trained by so many devices, each on its own data.
        compare: solvers whose round latency is put beside the plan's.
        on_solver: called with each solver's name before it runs.

    Raises:
        InfeasiblePlan: no assignment exists; the message says which block nobody can hold, by how much, and what would
            make it fit.
        InputError: a number of copies that the fleet cannot carry.
    """
    if copies < 1 or (copies > 1 and copies * len(table) > len(fleet.device)):
        raise InputError(
            f"--replicate {copies}: {copies} x {len(table)} blocks need {copies * len(table)} devices and the fleet "
            f"has {len(fleet.device)}; give at most {max(1, len(fleet.device) // len(table))}"
        )
    link, notes = fleet_link(fleet), []
    chosen = effective_solver(solver, len(fleet.device), len(table))
    if chosen != solver:
        notes.append(f"{len(fleet.device)} devices for {len(table)} blocks: devices take several blocks each")
    on_solver(chosen)
    try:
        solved = solve(chosen, costs, link, fleet.channel.bandwidth_hz, copies)
    except InfeasiblePlan as error:
        together = chosen in ALL_BLOCKS or (chosen == "several" and bool(costs.fits.any(axis=0).all()))
        raise explain(error, fleet, table, costs, link, copies, together) from None
    overhead = fleet.server.aggregation_seconds
    bound = solved.lower_bound
    compared: dict[str, float | None] = {}
    for name in compare:
        on_solver(name)
        other = try_solver(name, costs, link, fleet.channel.bandwidth_hz, copies)
        compared[name] = None if other is None else other.latency + overhead
        if other is not None and (effective_solver(name, *costs.compute.shape) in TOGETHER) == (chosen in TOGETHER):
            bound = max(bound, min(other.lower_bound, solved.latency))
    alone = compared.get("one-device")
    if alone is not None and alone < (solved.latency + overhead) * (1 - 1e-9) and chosen not in TOGETHER:
        notes.append("one device alone would be sooner, on its own data only; this plan learns from every device in it")
    if solved.stopped == "cap":
        notes.append(
            f"{chosen} stopped at its cap of {solved.iterations} iterations; the gap says how far it may be off"
        )
    parts = [_part(one, fleet, table, costs, link, copies, chosen) for one in solved.assignments()]
    busy = {part.device for part in parts}
    latency = solved.latency + overhead
    return Plan(
        model=table.model,
        model_digest=table.digest,
        budget=budget,
        solver=chosen,
        stopped=solved.stopped,
        iterations=solved.iterations,
        bandwidth_hz=fleet.channel.bandwidth_hz,
        aggregation_seconds=overhead,
        latency_seconds=latency,
        lower_bound_seconds=bound + overhead,
        gap_ratio=max(0.0, 1 - (bound + overhead) / latency) if latency > 0 else 0.0,
        blocks=[
            Block(layers=list(names), trained_values=float(values), upload_bits=float(bits))
            for names, values, bits in zip(table.layers, table.payload_values, costs.bits, strict=True)
        ],
        parts=sorted(parts, key=lambda part: part.blocks),
        idle=[device.name for device in fleet.device if device.name not in busy],
        compared_seconds=compared,
        notes=notes,
    )


def effective_solver(solver: str, devices: int, blocks: int) -> str:
    """``several`` where a device each is asked for and there are too few devices, else ``solver``."""
    SOLVERS[solver]
    return "several" if devices < blocks and solver in ONE_BLOCK_EACH else solver


def solve(name: str, costs: Costs, link: Link, bandwidth: float, copies: int = 1, seed: int = 0) -> JointPlan:
    """Runs a registered solver on the costs; with copies, column b of the result is block ``b // copies``."""
    if name != "several":
        fits = costs.fits_together if name in ALL_BLOCKS else costs.fits
        return _call(name, costs, fits, link, bandwidth, 1 if name in ALL_BLOCKS else copies, seed)
    found = _call(name, costs, costs.fits, link, bandwidth, 1, seed)
    if all(costs.holding(one.device, one.blocks) <= costs.capacity[one.device] for one in found.assignments()):
        return found
    return _call(name, costs, costs.fits_together, link, bandwidth, 1, seed)  # blocks that fit in any company


def _call(
    name: str, costs: Costs, fits: NDArray[np.bool_], link: Link, bandwidth: float, copies: int, seed: int
) -> JointPlan:
    solver = SOLVERS[name]
    extra = {"seed": seed} if "seed" in inspect.signature(solver).parameters else {}
    columns = np.repeat(np.arange(len(costs.bits)), copies)
    return solver(costs.busy[:, columns], fits[:, columns], costs.bits[columns], link, bandwidth, **extra)


def try_solver(
    name: str, costs: Costs, link: Link, bandwidth: float, copies: int = 1, seed: int = 0
) -> JointPlan | None:
    """The plan of a solver (``several`` where devices are too few), or None where it finds none."""
    try:
        found = solve(effective_solver(name, *costs.compute.shape), costs, link, bandwidth, copies, seed)
    except InfeasiblePlan:
        return None
    return found if math.isfinite(found.latency) else None


def _part(one: Assignment, fleet: Fleet, table: BlockTable, costs: Costs, link: Link, copies: int, solver: str) -> Part:
    blocks = sorted({b if solver in TOGETHER else b // copies for b in one.blocks})
    deepest, device = blocks[-1], fleet.device[one.device]
    return Part(
        device=device.name,
        blocks=[block + 1 for block in blocks],
        reaches_layer=int(table.deepest_layer[deepest]),
        bandwidth_hz=one.bandwidth,
        down_seconds=float(costs.down[one.device]),
        compute_seconds=float(costs.compute[one.device, deepest]),
        up_seconds=float(upload_seconds(link, one.device, costs.bits[blocks].sum(), one.bandwidth)),
        memory_bytes=costs.holding(one.device, blocks),
        capacity_bytes=device.memory_bytes,
    )
