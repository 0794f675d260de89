"""The chip file: the memories of a device, how it is used, and limits on a placement. docs/placement.md explains it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from taskedge.errors import InputError
from taskedge.placement.memory_cells import MemoryCell, checked, load_cell, parse_toml, toml_faults
from taskedge.profiling.profile_file import NonNegative, Positive, StrictRecord

TensorKind = Literal["base", "task", "activations", "buffer"]
KINDS: tuple[TensorKind, ...] = ("base", "task", "activations", "buffer")
"""Kinds of content: weights of the base, parameters of tasks, activations, and the buffer of the task in use."""

_Bits = Annotated[int, Field(ge=1, le=64)]


class ChipUse(StrictRecord):
    """How the chip is used, and how values are stored.

    Attributes:
        tokens_per_pass: tokens of one forward pass.
        passes_per_hour: forward passes; each task has the same share of them.
        switches_per_hour: changes from one task to another.
        task_updates_per_day: how often the parameters of each task are replaced by new ones.
        lifetime_years: how long no cell may wear out.
        compute_seconds_per_pass: time of the arithmetic; memory accesses overlap with it.
        weight_bits: bits of a stored weight of the base.
        base_density: share of the base's weights that is not zero. Below 1 a weight matrix is stored as a mask of one
            bit per weight and the nonzero values.
        entry_bits: bits of an entry of a task: its index and its difference from the base.
        parameter_bits: bits of any other value of a task: of its head, of a low-rank factor.
        activation_bits: bits of an activation.
    """

    tokens_per_pass: Annotated[int, Field(ge=1)] = 128
    passes_per_hour: NonNegative = 3600.0
    switches_per_hour: NonNegative = 60.0
    task_updates_per_day: NonNegative = 0.0
    lifetime_years: Positive = 10.0
    compute_seconds_per_pass: NonNegative = 0.0
    weight_bits: _Bits = 8
    base_density: Annotated[float, Field(gt=0, le=1)] = 1.0
    entry_bits: _Bits = 32
    parameter_bits: _Bits = 16
    activation_bits: _Bits = 8


class ChipLimits(StrictRecord):
    """Limits that a placement must keep; None is no limit.

    Attributes:
        area_mm2: area of all memories on the die.
        pass_seconds: time of the memory accesses of a pass, the mean over tasks.
        switch_seconds: time of a change of tasks, the mean over tasks.
    """

    area_mm2: Positive | None = None
    pass_seconds: Positive | None = None
    switch_seconds: Positive | None = None


class MemorySpec(StrictRecord):
    """One memory of the chip file.

    Attributes:
        name: for plans and messages.
        cell: a cell of the package, or a file (:func:`taskedge.placement.memory_cells.load_cell`).
        capacity_bytes: its largest size. Area and leakage count for the bytes in use.
        ports: words that are accessed at the same time.
        holds: kinds of content that it may hold.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    cell: str
    capacity_bytes: Annotated[int, Field(ge=1)]
    ports: Annotated[int, Field(ge=1)] = 1
    holds: list[TensorKind] = Field(default=list(KINDS), min_length=1)


class ChipSpec(StrictRecord):
    """Content of a chip file."""

    use: ChipUse = ChipUse()
    limits: ChipLimits = ChipLimits()
    memory: Annotated[list[MemorySpec], Field(min_length=1)]


@dataclass(frozen=True)
class Memory:
    """A memory of a chip with the numbers of its cell."""

    spec: MemorySpec
    cell: MemoryCell

    @property
    def name(self) -> str:
        """The name in the chip file."""
        return self.spec.name

    @property
    def capacity_bits(self) -> int:
        """The largest size in bits."""
        return 8 * self.spec.capacity_bytes

    @property
    def standby_watts(self) -> float:
        """Power of its chips as soon as anything lives in it."""
        return self.cell.standby_mw * 1e-3 * -(-self.spec.capacity_bytes // self.cell.array_bytes)


@dataclass(frozen=True)
class Chip:
    """A chip file that was read and checked, with the cells that its memories name."""

    use: ChipUse
    limits: ChipLimits
    memories: tuple[Memory, ...]


def load_chip(path: Path) -> Chip:
    """Read and check a chip file and the cells that it names.

    Raises:
        InputError: a file cannot be read, or has faults. The message lists every fault with its key and line.
    """
    raw, locations = parse_toml(path, "chip file")
    spec, faults = checked(raw, ChipSpec)
    rows = raw.get("memory")
    tables = [row if isinstance(row, dict) else {} for row in rows] if isinstance(rows, list) else []
    counts = Counter(name for row in tables if isinstance(name := row.get("name"), str))
    cells = []
    for index, row in enumerate(tables):  # the rows are raw, so that faults of other keys do not hide these
        name, cell = row.get("name"), row.get("cell")
        if isinstance(name, str) and counts[name] > 1:
            faults.append((("memory", index, "name"), f"the name {name!r} is used {counts[name]} times; change one"))
        if isinstance(cell, str):
            try:
                cells.append(load_cell(cell, path.parent))
            except InputError as error:
                faults.append((("memory", index, "cell"), str(error)))
    if faults or spec is None:
        raise toml_faults(path, "chip file", faults, locations)
    return Chip(spec.use, spec.limits, tuple(map(Memory, spec.memory, cells)))
