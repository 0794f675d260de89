"""Costs of every home of every tensor, as arrays: what the solvers choose from.

An option of a tensor is a home, and for a task's table whether it is buffered: copied at a switch of tasks into a
buffer of one memory, from which passes read it. All costs are sums over tensors, so a placement is a choice of one
option for each tensor under capacities and limits that are sums as well.

Source: this project, after adapter-ALBERT (arXiv 2303.16100).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskedge.placement.chip_file import Chip, ChipUse, Memory, TensorKind
from taskedge.placement.stored_tensors import StoredTensor

Floats = NDArray[np.float64]
SECONDS_PER_HOUR = 3600.0
HOURS_PER_YEAR = 24 * 365.25

MEASURES = ("area_mm2", "leakage_watts", "pass_seconds", "pass_joules", "switch_seconds", "switch_joules",
            "update_joules")  # fmt: skip
"""Measures of an option, in this order in arrays. Those of a pass, a switch and an update are means over tasks."""
OBJECTIVES = ("energy", "latency", "area")
"""What a placement minimizes: joules per hour, seconds of memory accesses in a pass, or area on the die."""


@dataclass(frozen=True)
class Option:
    """One home of a tensor.

    Attributes:
        memory: index of the memory.
        buffered: whether passes read the buffer instead of the home.
        measures: [7], in the order of ``MEASURES``.
    """

    memory: int
    buffered: bool
    measures: Floats


@dataclass(frozen=True)
class PlacementProblem:
    """A choice of one option for each tensor.

    Attributes:
        tensors: what is placed.
        options: the possible homes of each tensor, none of which wears out too early.
        capacities: int64 [memories], bits that are left for tensors.
        fixed: [7] measures of the buffer and of the memories in standby.
        buffer: index of the memory that holds the buffer; None without one.
        powered: indices of the memories with a standby power that are in use; no others of them are homes.
        weights: [7] factors that sum measures to the objective.
        limits: upper bounds by the index of their measure.
    """

    tensors: list[StoredTensor]
    options: list[list[Option]]
    capacities: NDArray[np.int64]
    fixed: Floats
    buffer: int | None
    powered: frozenset[int]
    weights: Floats
    limits: dict[int, float]

    def measures(self, chosen: list[int]) -> Floats:
        """Return [7], the measures of a placement: the index of an option for each tensor."""
        total = self.fixed.copy()
        for options, index in zip(self.options, chosen, strict=True):
            total += options[index].measures
        return total


def words(bits: int, memory: Memory) -> int:
    """Return the accesses that move ``bits`` bits."""
    return -(-bits // memory.cell.word_bits)


def objective_weights(objective: str, use: ChipUse) -> Floats:
    """Return [7] factors of the measures; energy is in joules per hour."""
    weights = dict.fromkeys(MEASURES, 0.0)
    if objective == "area":
        weights["area_mm2"] = 1.0
    elif objective == "latency":
        weights["pass_seconds"] = 1.0
    else:
        weights |= {
            "leakage_watts": SECONDS_PER_HOUR,
            "pass_joules": use.passes_per_hour,
            "switch_joules": use.switches_per_hour,
            "update_joules": use.task_updates_per_day / 24,
        }
    return np.array([weights[name] for name in MEASURES])


def writes_per_hour(tensor: StoredTensor, use: ChipUse) -> float:
    """Return how often each cell of a tensor is written, where writes spread evenly over its cells."""
    rate = tensor.share * use.passes_per_hour * tensor.written_bits / max(tensor.bits, 1)
    return rate + (use.task_updates_per_day / 24 if tensor.kind == "task" else 0.0)


def lifetime_years(rate: float, memory: Memory) -> float:
    """Return the years until cells that are written ``rate`` times an hour fail, at the lowest published endurance."""
    endurance = memory.cell.min_endurance_writes
    return float("inf") if endurance is None or rate == 0 else endurance / rate / HOURS_PER_YEAR


def buffer_bits(tensors: list[StoredTensor]) -> int:
    """Return the size of a buffer that holds the largest task."""
    sizes: dict[str | None, int] = defaultdict(int)
    for tensor in tensors:
        if tensor.kind == "task":
            sizes[tensor.task] += tensor.bits
    return max(sizes.values(), default=0)


def refusal(tensor: StoredTensor, memory: Memory, chip: Chip) -> str | None:
    """Return why a memory cannot hold a tensor, or None; capacity is judged for all tensors together."""
    return _refusal(tensor.kind, tensor.bits, writes_per_hour(tensor, chip.use), memory, chip)


def _refusal(kind: TensorKind, bits: int, rate: float, memory: Memory, chip: Chip) -> str | None:
    if kind not in memory.spec.holds:
        return f"{memory.name} does not hold {kind}"
    if lifetime_years(rate, memory) < chip.use.lifetime_years:
        return f"{memory.name} would wear out after {lifetime_years(rate, memory):.3g} years"
    if bits > memory.capacity_bits:
        return f"{memory.name} has {memory.spec.capacity_bytes:,} bytes"
    return None


def home_option(tensor: StoredTensor, index: int, chip: Chip) -> Option:
    """Return the option that a tensor lives in memory ``index`` and is read there."""
    memory = chip.memories[index]
    cell, ports = memory.cell, memory.spec.ports
    reads = tensor.share * words(tensor.read_bits, memory)
    writes = tensor.share * words(tensor.written_bits, memory)
    measures = _measures(
        _area(tensor.bits, memory),
        tensor.bits * cell.leakage_watts_per_bit,
        (reads * cell.read_ns + writes * cell.write_ns) * 1e-9 / ports,
        (reads * cell.read_pj + writes * cell.write_pj) * 1e-12,
        update_joules=_update_joules(tensor, memory),
    )
    return Option(index, False, measures)


def buffered_option(tensor: StoredTensor, index: int, buffer: int, chip: Chip) -> Option:
    """Return the option that a task's table lives in memory ``index`` and passes read it from a buffer."""
    home, place = chip.memories[index], chip.memories[buffer]
    reads = tensor.share * words(tensor.read_bits, place)
    fetched, filled = tensor.share * words(tensor.bits, home), tensor.share * words(tensor.bits, place)
    measures = _measures(
        _area(tensor.bits, home),
        tensor.bits * home.cell.leakage_watts_per_bit,
        reads * place.cell.read_ns * 1e-9 / place.spec.ports,
        reads * place.cell.read_pj * 1e-12,
        (fetched * home.cell.read_ns / home.spec.ports + filled * place.cell.write_ns / place.spec.ports) * 1e-9,
        (fetched * home.cell.read_pj + filled * place.cell.write_pj) * 1e-12,
        _update_joules(tensor, home),
    )
    return Option(index, True, measures)


def problems(tensors: list[StoredTensor], chip: Chip, objective: str = "energy") -> list[PlacementProblem]:
    """Return one problem for each memory that can hold a buffer (or none) and each set of memories in standby.

    The standby power of a chip is paid once, however much lives in it. A tensor that no memory can hold has no option;
    :func:`taskedge.placement.solve_placement.solve_placement` reports it.
    """
    size = buffer_bits(tensors)
    buffers: list[int | None] = [None]
    if size:
        rate = chip.use.switches_per_hour
        buffers += [
            index for index, memory in enumerate(chip.memories) if _refusal("buffer", size, rate, memory, chip) is None
        ]
    costly = [index for index, memory in enumerate(chip.memories) if memory.standby_watts]
    sets = [frozenset(some) for count in range(len(costly) + 1) for some in itertools.combinations(costly, count)]
    return [
        _problem(tensors, chip, objective, buffer, size, powered, frozenset(costly) - powered)
        for powered in sets  # the smallest first: of equal placements the first is taken
        for buffer in buffers
        if buffer not in costly or buffer in powered
    ]


def _problem(
    tensors: list[StoredTensor], chip: Chip, objective: str, buffer: int | None, size: int, powered: frozenset[int],
    unpowered: frozenset[int],
) -> PlacementProblem:  # fmt: skip
    capacities = np.array([memory.capacity_bits for memory in chip.memories], dtype=np.int64)
    fixed = _measures(0.0, sum(chip.memories[index].standby_watts for index in powered))
    if buffer is not None:
        memory = chip.memories[buffer]
        capacities[buffer] -= size
        fixed += _measures(_area(size, memory), size * memory.cell.leakage_watts_per_bit)
    options = []
    for tensor in tensors:
        homes = [
            index
            for index, memory in enumerate(chip.memories)
            if index not in unpowered and refusal(tensor, memory, chip) is None
        ]
        found = [home_option(tensor, index, chip) for index in homes]
        if buffer is not None and tensor.kind == "task":
            found += [buffered_option(tensor, index, buffer, chip) for index in homes]
        options.append(found)
    given = {
        "area_mm2": chip.limits.area_mm2,
        "pass_seconds": chip.limits.pass_seconds,
        "switch_seconds": chip.limits.switch_seconds,
    }
    limits = {MEASURES.index(name): value for name, value in given.items() if value is not None}
    return PlacementProblem(
        tensors, options, capacities, fixed, buffer, powered, objective_weights(objective, chip.use), limits
    )


def _area(bits: int, memory: Memory) -> float:
    return 0.0 if memory.cell.off_chip else bits * memory.cell.area_mm2_per_bit


def _update_joules(tensor: StoredTensor, memory: Memory) -> float:
    return words(tensor.bits, memory) * memory.cell.write_pj * 1e-12 if tensor.kind == "task" else 0.0


def _measures(
    area: float, leakage: float, pass_seconds: float = 0.0, pass_joules: float = 0.0, switch_seconds: float = 0.0,
    switch_joules: float = 0.0, update_joules: float = 0.0,
) -> Floats:  # fmt: skip
    return np.array([area, leakage, pass_seconds, pass_joules, switch_seconds, switch_joules, update_joules])
