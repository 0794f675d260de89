"""Memory cells: published numbers of one array of each kind, one file a kind, each with its source.

The files are in ``cell_data/``. A user's file of the same form describes another cell.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from taskedge.errors import InputError, did_you_mean
from taskedge.planning.toml_locations import Location, TomlLocations
from taskedge.profiling.profile_file import NonNegative, Positive, StrictRecord

CELL_DATA = Path(__file__).parent / "cell_data"
Record = TypeVar("Record", bound=StrictRecord)
Fault = tuple[Location, str]
"""A place in a file, and the problem there."""


class CellLevels(StrictRecord):
    """The levels of a cell of ``bits`` bits, lowest first: a read value is a Gaussian around the level's mean."""

    bits: Annotated[int, Field(ge=1, le=4)]
    means: list[float]
    sigmas: list[Positive]

    @model_validator(mode="after")
    def _one_for_each_value(self) -> Self:
        if not len(self.means) == len(self.sigmas) == 2**self.bits:
            raise ValueError(f"{self.bits} bits need {2**self.bits} means and sigmas")
        if any(low >= high for low, high in zip(self.means, self.means[1:], strict=False)):
            raise ValueError("the means must rise")
        return self


class MemoryCell(StrictRecord):
    """Numbers of one array, from which a memory of any size is scaled.

    Attributes:
        source: where the numbers of the array are published.
        volatile: whether it forgets without power.
        off_chip: whether it is a chip beside the die, so that its area does not count.
        word_bits: bits of one access.
        array_bytes: size of the array that ``area_mm2`` and ``leakage_mw`` belong to; both grow in proportion.
        standby_mw: power of each array of a memory in which anything lives, however little.
        read_ns, write_ns, read_pj, write_pj: time and energy of an access of one word.
        min_endurance_writes, max_endurance_writes: writes of a cell before it fails, lowest and highest published
            value; None if the cell does not wear out.
        levels: how cells are read, by bits in a cell; empty if no source states it.
        assumptions: what the sources do not state.
    """

    title: str
    source: str
    volatile: bool
    off_chip: bool = False
    word_bits: Annotated[int, Field(ge=1)]
    array_bytes: Annotated[int, Field(ge=1)]
    area_mm2: NonNegative
    read_ns: NonNegative
    write_ns: NonNegative
    read_pj: NonNegative
    write_pj: NonNegative
    leakage_mw: NonNegative
    standby_mw: NonNegative = 0.0
    endurance_source: str = ""
    min_endurance_writes: Positive | None = None
    max_endurance_writes: Positive | None = None
    levels_source: str = ""
    levels: list[CellLevels] = Field(default=[])
    assumptions: list[str] = Field(default=[])

    @property
    def area_mm2_per_bit(self) -> float:
        """Area of one bit."""
        return self.area_mm2 / (8 * self.array_bytes)

    @property
    def leakage_watts_per_bit(self) -> float:
        """Leakage power of one bit."""
        return self.leakage_mw * 1e-3 / (8 * self.array_bytes)

    def levels_of(self, bits: int) -> CellLevels:
        """Return the levels of a cell of ``bits`` bits.

        Raises:
            InputError: no source states them.
        """
        for levels in self.levels:
            if levels.bits == bits:
                return levels
        known = ", ".join(str(levels.bits) for levels in self.levels)
        stated = f"only those of cells with {known} bits are known" if known else "none are known"
        raise InputError(f"the levels of {self.title} with {bits} bits in a cell: {stated}; give --fault-rate instead")


def cell_names() -> list[str]:
    """Return the names of the cells of the package."""
    return sorted(path.stem for path in CELL_DATA.glob("*.toml"))


def load_cell(name: str, folder: Path | None = None) -> MemoryCell:
    """Return a cell of the package by name, or the cell of a file.

    Args:
        name: one of :func:`cell_names`, or the path of a file that ends in ``.toml``.
        folder: where a relative path is looked up; by default the current folder.

    Raises:
        InputError: there is no such cell, or its file has faults. The message lists every fault with its line.
    """
    if name.endswith(".toml"):
        return read_toml((folder or Path()) / name, MemoryCell, "cell file")
    if name not in cell_names():
        near = did_you_mean(name, cell_names())
        raise InputError(
            f"unknown cell {name!r}{near} (known: {', '.join(cell_names())}, or a file that ends in .toml)"
        )
    return read_toml(CELL_DATA / f"{name}.toml", MemoryCell, "cell file")


def read_toml(path: Path, record: type[Record], what: str) -> Record:
    """Read a TOML file into a record, with all faults in one message.

    Args:
        path: the file.
        record: class of its content.
        what: the kind of file, for messages.

    Raises:
        InputError: the file cannot be read, or has faults. Each fault has its key and line.
    """
    raw, locations = parse_toml(path, what)
    content, faults = checked(raw, record)
    if content is None:
        raise toml_faults(path, what, faults, locations)
    return content


def parse_toml(path: Path, what: str) -> tuple[dict[str, Any], TomlLocations]:
    """Return the content of a TOML file and its line numbers.

    Raises:
        InputError: the file cannot be read, or is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), TomlLocations(text)
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror}; docs/placement.md shows how to write one") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{what} {path} is not TOML: {error}") from None


def checked(raw: dict[str, Any], record: type[Record]) -> tuple[Record | None, list[Fault]]:
    """Return the record of a parsed file, or None and its faults."""
    try:
        return record.model_validate(raw), []
    except ValidationError as error:
        return None, [_fault_of(dict(fault), record) for fault in error.errors()]


def toml_faults(path: Path, what: str, faults: list[Fault], locations: TomlLocations) -> InputError:
    """Return the error that lists faults, each with its key and line, in the order of the file."""
    lines = sorted((locations.line(at) or 0, f"{_key(at)}", problem) for at, problem in faults)
    texts = [f"  {key}{f' (line {line})' if line else ''}: {problem}" for line, key, problem in lines]
    return InputError(f"{what} {path} has {len(texts)} fault{'s' * (len(texts) > 1)}:\n" + "\n".join(texts))


def _key(at: Location) -> str:
    """Return ``memory 2, ports`` for ("memory", 1, "ports"): rows count from 1."""
    if len(at) > 1 and isinstance(at[1], int):
        rest = " ".join(str(part) for part in at[2:])
        return f"{at[0]} {at[1] + 1}" + (f", {rest}" if rest else "")
    return ".".join(str(part) for part in at) or "file"


def _fault_of(fault: dict[str, Any], record: type[StrictRecord]) -> Fault:
    """Return a fault that pydantic found as (place, problem)."""
    at: Location = tuple(fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(record, at[:-1])
        return at, f"unknown key{did_you_mean(str(at[-1]), known)} (known: {', '.join(known)})"
    if fault["type"] == "missing":
        return at, "is missing; docs/placement.md lists the keys"
    given = fault.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return at, f"{fault['msg'].removeprefix('Input ').removeprefix('Value error, ')}{shown}"


def _fields_at(record: type[StrictRecord], at: Location) -> list[str]:
    """Return the keys of the table at a place of a record."""
    names = [part for part in at if isinstance(part, str)]
    fields = record.model_fields
    for name in names:
        kind = fields[name].annotation
        inner: Any = getattr(kind, "__args__", (kind,))[0]
        fields = inner.model_fields
    return list(fields)
