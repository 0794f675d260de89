"""Plans: which device trains which blocks with which share of the band. Making one, and its file.

A plan is plain figures. Blocks are named by their depth (1 = nearest the loss) and by the layers they hold.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from taskedge.backbone.cost_table import BlockTable
from taskedge.errors import InputError
from taskedge.planning.explain import explain_infeasible
from taskedge.planning.fleet_costs import FleetCosts
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.link_models import FixedRateLink, Floats, Link, MixedLink, ShannonLink
from taskedge.planning.lower_bounds import bound_of_all_plans
from taskedge.planning.problem import (
    Assignment,
    BlockMemory,
    InfeasiblePlan,
    JointPlan,
    check_instance,
    upload_seconds,
)
from taskedge.planning.solvers import SOLVERS
from taskedge.profiling.profile_file import NonNegative, Positive, StrictRecord

ONE_BLOCK_EACH = ("one-each", "dual-ascent", "match")
"""Solvers that give each block its own device. With fewer devices than blocks, ``exact`` replaces them."""

ANY_NUMBER = ("exact", "several")
"""Solvers for any number of blocks on a device, none included. Their bound holds for every plan."""

ALL_BLOCKS = ("one-device", "fedavg")
"""Solvers whose devices train every block."""

BASELINES = ("random", "greedy", "hungarian", "equal", "match", "one-device", "fedavg")
"""Naive solvers that a plan is compared with."""

COMPARED = ("exact", "one-each", "dual-ascent", *BASELINES)
"""All solvers that a plan is compared with."""

ROUNDING = 1e-6
"""Relative tolerance of the checks of a plan file, for sums that were rounded."""


class PlannedDevice(StrictRecord):
    """A device's row of the plan file: its assignment, and what it is predicted to take.

    Attributes:
        device: name in the fleet file.
        blocks: depths, shallow first.
        reaches_layer: number of layers that backpropagation passes through.
        bandwidth_hz: share of the radio band; 0 for a wired device.
        down_seconds, compute_seconds, up_seconds: phases of the round, one after the other.
        memory_bytes: peak memory while the blocks train.
        capacity_bytes: memory of the device.
    """

    device: str
    blocks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    reaches_layer: Annotated[int, Field(ge=1)]
    bandwidth_hz: NonNegative
    down_seconds: NonNegative
    compute_seconds: NonNegative
    up_seconds: NonNegative
    memory_bytes: NonNegative
    capacity_bytes: Positive

    @property
    def seconds(self) -> float:
        """Seconds of the round on this device."""
        return self.down_seconds + self.compute_seconds + self.up_seconds


class PlannedBlock(StrictRecord):
    """One trainable block. Its depth is its position in the plan's list, from 1."""

    layers: Annotated[list[str], Field(min_length=1)]
    trained_values: NonNegative
    upload_bits: NonNegative


class Plan(StrictRecord):
    """One round of cooperative training.

    Attributes:
        model, model_digest: name and digest of the model.
        budget: budget as the user wrote it.
        solver: name of the solver that ran.
        stopped, iterations: why and after how many steps the solver ended.
        bandwidth_hz: the radio band that the devices share.
        aggregation_seconds: time of the server at the end of the round.
        latency_seconds: length of the round, aggregation included.
        lower_bound_seconds: latency that no plan can beat, with any number of blocks on a device.
        gap_ratio: ``1 - lower_bound / latency``.
        blocks: trainable blocks, by depth.
        parts: one row for each device with work, by blocks.
        idle: devices without work.
        compared_seconds: latency of other solvers; None if a solver finds no plan.
        notes: remarks for the user.
    """

    format: Literal["taskedge-plan-1"] = "taskedge-plan-1"
    model: str
    model_digest: str
    budget: str
    solver: str
    stopped: str
    iterations: int
    bandwidth_hz: Positive
    aggregation_seconds: NonNegative
    latency_seconds: NonNegative
    lower_bound_seconds: NonNegative
    gap_ratio: NonNegative
    blocks: Annotated[list[PlannedBlock], Field(min_length=1)]
    parts: Annotated[list[PlannedDevice], Field(min_length=1)]
    idle: list[str]
    compared_seconds: dict[str, float | None]
    notes: list[str]

    def to_json(self) -> str:
        """Return the text of the plan file."""
        return self.model_dump_json(indent=2) + "\n"

    def check_model(self, table: BlockTable) -> None:
        """Check that the plan was made for this model, cut into these blocks.

        Raises:
            InputError: the plan is for another model or for other blocks.
        """
        if self.model_digest != table.digest:
            raise InputError(
                f"the plan is for {self.model} (digest {self.model_digest}), not for {table.model} ({table.digest}): "
                "make it with this model"
            )
        if [tuple(block.layers) for block in self.blocks] != [tuple(layers) for layers in table.layers]:
            raise InputError(
                f"the plan has {len(self.blocks)} blocks that are not the {len(table)} blocks of this run: make it "
                "with the same --blocks"
            )

    def assignments(self, devices: Sequence[str]) -> list[Assignment]:
        """Return the plan as assignments: indices into ``devices``, block columns from 0, and Hz.

        Raises:
            InputError: the plan has devices that ``devices`` does not name.
        """
        missing = [part.device for part in self.parts if part.device not in devices]
        if missing:
            raise InputError(f"the plan has work for devices that are not here: {', '.join(missing)}")
        return [
            Assignment(devices.index(part.device), tuple(depth - 1 for depth in part.blocks), part.bandwidth_hz)
            for part in self.parts
        ]

    @model_validator(mode="after")
    def _check_parts(self) -> Plan:
        faults = []
        depths = range(1, len(self.blocks) + 1)
        for part in self.parts:
            if any(deeper <= shallower for shallower, deeper in pairwise(part.blocks)):
                faults.append(f"the blocks of {part.device!r} are not in rising order: {part.blocks}")
            beyond = [depth for depth in part.blocks if depth not in depths]
            if beyond:
                faults.append(f"{part.device!r} has block {beyond[0]}, and there are {len(self.blocks)} blocks")
            if part.memory_bytes > part.capacity_bytes * (1 + ROUNDING):
                faults.append(f"{part.device!r} needs more memory than it has")
        named = Counter([*(part.device for part in self.parts), *self.idle])
        faults += [f"device {name!r} is named {count} times" for name, count in named.items() if count > 1]
        assigned = {depth for part in self.parts for depth in part.blocks}
        faults += [f"no device has block {depth}" for depth in depths if depth not in assigned]
        layers = Counter(layer for block in self.blocks for layer in block.layers)
        faults += [f"layer {name!r} is in {count} blocks" for name, count in layers.items() if count > 1]
        if sum(part.bandwidth_hz for part in self.parts) > self.bandwidth_hz * (1 + ROUNDING):
            faults.append("the devices have more bandwidth than the band")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def read_plan(path: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        InputError: the file is missing, is not a plan, or contradicts itself. The message names every fault.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"plan {path}: {error.strerror}; `taskedge plan --out {path.name}` makes one") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"plan {path} is not a plan that taskedge can use: {faults}") from None


def fleet_link(fleet: FleetSpec, gains: Floats | None = None) -> Link:
    """Return the uplinks of the fleet at power gains ``gains`` [K], by default the mean gains."""
    cable, snr = fleet.wired(), fleet.snr_hz(fleet.gains() if gains is None else gains)
    wired = np.isfinite(cable)
    if wired.all():
        return FixedRateLink(cable)
    radio = ShannonLink(np.where(wired, 0.0, snr))
    return MixedLink(radio, FixedRateLink(np.where(wired, cable, 0.0)), wired) if wired.any() else radio


def make_plan(
    fleet: FleetSpec,
    table: BlockTable,
    costs: FleetCosts,
    solver: str = "exact",
    *,
    budget: str = "",
    copies: int = 1,
    compare: Sequence[str] = COMPARED,
    on_solver: Callable[[str], object] = lambda _: None,
) -> Plan:
    """Plan one round at the fleet's mean gains.

    Args:
        fleet: devices and channel.
        table: blocks of the model.
        costs: :func:`~taskedge.planning.fleet_costs.fleet_costs` of both.
        solver: a registered solver. With fewer devices than blocks, ``exact`` replaces those with a device for each.
        budget: recorded in the plan.
        copies: number of different devices that train each block, each on its own data.
        compare: solvers whose latency is recorded beside the plan's.
        on_solver: called with each solver's name before it runs.

    Raises:
        InfeasiblePlan: no assignment exists. The message names the block that no device can hold, the missing memory,
            and remedies.
        InputError: the fleet has too few devices for ``copies``.
    """
    devices, blocks = len(fleet.device), len(table)
    most = devices if SOLVERS.current_name(solver) in ANY_NUMBER else max(1, devices // blocks)
    if not 1 <= copies <= most:
        raise InputError(
            f"--replicate {copies}: {copies} x {blocks} blocks on different devices, and the fleet has {devices}; with "
            f"the solver {solver!r} give 1 to {most}"
        )
    link, notes = fleet_link(fleet), []
    chosen, named = effective_solver(solver, devices, blocks), SOLVERS.current_name(solver)
    if named != solver:
        notes.append(f"the solver {solver!r} is now {named!r}; the old name will go")
    if chosen != named:
        notes.append(f"{devices} devices for {blocks} blocks: devices take several blocks each, by {chosen!r}")
    on_solver(chosen)
    try:
        solved = solve(chosen, costs, link, fleet.channel.bandwidth_hz, copies)
    except InfeasiblePlan as error:
        together = chosen in ALL_BLOCKS or (chosen in ANY_NUMBER and bool(costs.fits.any(axis=0).all()))
        raise explain_infeasible(error, fleet, table, costs, link, copies, together) from None
    overhead = fleet.server.aggregation_seconds
    compared: dict[str, float | None] = {}
    plans: dict[str, JointPlan | None] = {chosen: solved if math.isfinite(solved.latency) else None}
    for name in compare:
        on_solver(name)
        effective = effective_solver(name, devices, blocks)
        if effective not in plans:  # several names may stand for one solver: plan once
            plans[effective] = try_solver(effective, costs, link, fleet.channel.bandwidth_hz, copies)
        other = plans[effective]
        compared[name] = None if other is None else other.latency + overhead
    bound = _bound_of_all_plans(plans, chosen, costs, link, fleet.channel.bandwidth_hz, copies)
    alone = compared.get("one-device")
    if alone is not None and alone < (solved.latency + overhead) * (1 - 1e-9) and chosen in ONE_BLOCK_EACH:
        notes.append("one device alone would be sooner, on its own data only; this plan learns from every device in it")
    if chosen == "dual-ascent":
        notes.append(
            f"the bound of the ascent, for one block a device: {solved.lower_bound + overhead:.6g} s, which leaves a "
            f"gap of {100 * solved.gap:.2g} %"
        )
    if solved.stopped == "cap":
        notes.append(
            f"{chosen} stopped at its cap of {solved.iterations} iterations; the gap says how far it may be off"
        )
    parts = [
        _planned_device(assignment, fleet, table, costs, link, 1 if chosen in ALL_BLOCKS else copies)
        for assignment in solved.assignments()
    ]
    busy = {part.device for part in parts}
    if chosen in ANY_NUMBER and len(busy) < min(devices, blocks):
        notes.append(
            f"sooner without {devices - len(busy)} of {devices} devices, whose data this round does not see; "
            "'one-each' gives each block its own device"
        )
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
            PlannedBlock(layers=list(names), trained_values=float(values), upload_bits=float(bits))
            for names, values, bits in zip(table.layers, table.payload_values, costs.bits, strict=True)
        ],
        parts=sorted(parts, key=lambda part: part.blocks),
        idle=[device.name for device in fleet.device if device.name not in busy],
        compared_seconds=compared,
        notes=notes,
    )


def effective_solver(solver: str, devices: int, blocks: int) -> str:
    """Return the solver that runs: ``exact`` if each block needs its own device and there are too few devices."""
    SOLVERS[solver]  # raises for an unknown name
    name = SOLVERS.current_name(solver)
    return "exact" if devices < blocks and name in ONE_BLOCK_EACH else name


def solve(
    name: str,
    costs: FleetCosts,
    link: Link,
    bandwidth: float,
    copies: int = 1,
    seed: int = 0,
    spread_slack: float = 0.0,
) -> JointPlan:
    """Run a registered solver on the costs. With copies, column b of the result is block ``b // copies``.

    ``spread_slack`` is the fraction by which a plan of ``exact`` or ``several`` may be slower on more devices.
    """
    solver, name = SOLVERS[name], SOLVERS.current_name(name)
    columns = np.repeat(np.arange(len(costs.bits)), 1 if name in ALL_BLOCKS else copies)
    fits = costs.fits_together if name in ALL_BLOCKS else costs.fits
    offered: dict[str, Any] = {
        "seed": seed,
        "spread_slack": spread_slack,
        "memory": BlockMemory(costs.memory, costs.extra, costs.capacity).select(slice(None), columns),
        "copy_of": columns if copies > 1 else None,
    }
    taken = inspect.signature(solver).parameters
    kwargs = {key: value for key, value in offered.items() if key in taken}
    return solver(costs.busy[:, columns], fits[:, columns], costs.bits[columns], link, bandwidth, **kwargs)


def _bound_of_all_plans(
    plans: Mapping[str, JointPlan | None], chosen: str, costs: FleetCosts, link: Link, bandwidth: float, copies: int
) -> float:
    """Return seconds that no plan can beat, from the solvers that ran, else computed for the chosen plan."""
    plan = plans[chosen]
    assert plan is not None
    known = [other.lower_bound for name in ANY_NUMBER if (other := plans.get(name)) is not None]
    if known and (copies == 1 or chosen not in ALL_BLOCKS):
        return min(max(known), plan.latency)
    instance = check_instance(costs.busy, costs.fits, costs.bits, link, bandwidth)
    return min(bound_of_all_plans(instance, plan.latency), plan.latency)


def try_solver(
    name: str, costs: FleetCosts, link: Link, bandwidth: float, copies: int = 1, seed: int = 0
) -> JointPlan | None:
    """Return the plan of a solver (``exact`` if there are too few devices), or None if it finds no plan."""
    try:
        plan = solve(effective_solver(name, *costs.compute.shape), costs, link, bandwidth, copies, seed)
    except InfeasiblePlan:
        return None
    return plan if math.isfinite(plan.latency) else None


def _planned_device(
    assignment: Assignment,
    fleet: FleetSpec,
    table: BlockTable,
    costs: FleetCosts,
    link: Link,
    copies: int,
) -> PlannedDevice:
    index = assignment.device
    blocks = sorted({column // copies for column in assignment.blocks})
    deepest, device = blocks[-1], fleet.device[index]
    return PlannedDevice(
        device=device.name,
        blocks=[block + 1 for block in blocks],
        reaches_layer=int(table.deepest_layer[deepest]),
        bandwidth_hz=assignment.bandwidth,
        down_seconds=float(costs.down[index]),
        compute_seconds=float(costs.compute[index, deepest]),
        up_seconds=float(upload_seconds(link, index, costs.bits[blocks].sum(), assignment.bandwidth)),
        memory_bytes=costs.memory_of_blocks(index, blocks),
        capacity_bytes=device.memory_bytes,
    )
