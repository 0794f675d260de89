"""Reading of the fleet file, with all faults in one message.

Each fault has its place (table, device, line) and, for an unknown key, the nearest known one. The profiles that devices
name are read and checked as well, so a fleet that loads is complete.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from taskedge.errors import InputError, did_you_mean
from taskedge.planning.fleet_spec import ChannelSpec, DeviceSpec, FleetSpec, ModelSpec, ServerSpec
from taskedge.planning.toml_locations import Location, TomlLocations
from taskedge.profiling.profile_file import Profile, StrictRecord, read_profile

TOKEN_BYTES = 8  # a token id is an int64
COMPUTE_KEYS = ("profile", "flops_per_second")
LINK_KEYS = ("gain_db", "distance_metres", "wired_bits_per_second")

TABLES: dict[str, type[StrictRecord]] = {
    "server": ServerSpec,
    "channel": ChannelSpec,
    "model": ModelSpec,
    "device": DeviceSpec,
}
"""Tables of the file and their contents."""

Fault = tuple[Location, str]
"""A place in the file, and what is wrong there."""


def load_fleet(path: Path) -> FleetSpec:
    """Read and check a fleet file.

    Raises:
        InputError: the file cannot be read, or has faults. The message lists every fault with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"fleet file {path}: {error.strerror}; docs/planning.md shows how to write one") from None
    except UnicodeDecodeError as error:
        raise InputError(f"fleet file {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"fleet file {path} is not TOML: {error}") from None
    return parse_fleet(raw, path, TomlLocations(text))


def parse_fleet(raw: dict[str, Any], path: Path, locations: TomlLocations | None = None) -> FleetSpec:
    """Return the fleet of a parsed document.

    Args:
        raw: content of the file.
        path: the file, for messages. Profiles are looked up in its folder.
        locations: line numbers, for messages.

    Raises:
        InputError: the content has faults. The message lists every fault with its place.
    """
    faults: list[Fault] = []
    fleet: FleetSpec | None = None
    try:
        fleet = FleetSpec.model_validate(raw)
    except ValidationError as error:
        faults += [_from_pydantic(dict(fault)) for fault in error.errors()]
    rows = raw.get("device")
    devices = [row if isinstance(row, dict) else {} for row in rows] if isinstance(rows, list) else []
    faults += _cross_faults(devices, raw)
    profiles: dict[int, Profile] = {}
    for index, device in enumerate(devices):
        if isinstance(device.get("profile"), str):
            try:
                profiles[index] = read_profile(path.parent / device["profile"])
            except InputError as error:
                faults.append((("device", index, "profile"), str(error)))
    if faults or fleet is None:
        raise InputError(_message(path, faults, devices, locations or TomlLocations("")))
    for index, profile in profiles.items():
        fleet.device[index]._profile = profile
    return fleet


def _cross_faults(devices: list[dict[str, Any]], raw: dict[str, Any]) -> list[Fault]:
    """Return faults that involve several keys. The rows are raw, so that faults of single keys do not hide these."""
    faults: list[Fault] = []
    names = Counter(name for device in devices if isinstance(name := device.get("name"), str))
    model = raw.get("model")
    length = model.get("sequence_tokens") if isinstance(model, dict) else None
    default_length = length if isinstance(length, int) else ModelSpec.model_fields["sequence_tokens"].default
    seen: set[str] = set()
    for index, device in enumerate(devices):
        at = ("device", index)
        name = device.get("name")
        if isinstance(name, str) and names[name] > 1:
            if name in seen:
                faults.append(((*at, "name"), f"the name {name!r} is used {names[name]} times; give each its own"))
            seen.add(name)
        faults += _one_of(device, at, COMPUTE_KEYS, "its speed")
        faults += _one_of(device, at, LINK_KEYS, "its link")
        if "profile" in device:
            extra = [key for key in ("utilisation_ratio", "batch_sequences") if key in device]
            faults += [((*at, key), "the profile has this already; remove it") for key in extra]
        if "flops_per_second" in device and "utilisation_ratio" not in device:
            faults.append((at, "utilisation_ratio is missing: the share of flops_per_second that training reaches"))
        if ("gain_db" in device or "distance_metres" in device) and "transmit_watts" not in device:
            faults.append((at, "transmit_watts is missing: a radio link needs its power"))
        faults += _size_faults(device, at, default_length)
    return faults


def _size_faults(device: dict[str, Any], at: Location, length: int) -> list[Fault]:
    sequences = device.get("batch_sequences", DeviceSpec.model_fields["batch_sequences"].default)
    if "profile" in device or not isinstance(sequences, int) or sequences < 1:
        return []
    tokens = sequences * length
    faults: list[Fault] = []
    memory, per_round = device.get("memory_bytes"), device.get("tokens_per_round")
    if _is_number(memory) and 0 < memory < tokens * TOKEN_BYTES:
        problem = f"{memory:g} bytes cannot hold the {tokens} token ids of one batch; is the unit bytes?"
        faults.append(((*at, "memory_bytes"), problem))
    if _is_number(per_round) and 0 < per_round < tokens:
        problem = f"{per_round:g} is less than one batch ({sequences} sequences of {length} tokens)"
        faults.append(((*at, "tokens_per_round"), problem))
    return faults


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(device: dict[str, Any], at: Location, keys: tuple[str, ...], subject: str) -> list[Fault]:
    """Return a fault unless the device has exactly one of ``keys``."""
    given = [key for key in keys if key in device]
    if len(given) == 1:
        return []
    problem = f"{' and '.join(given)} both give {subject}" if given else f"nothing gives {subject}"
    return [(at, f"{problem}; give one of {', '.join(keys)}")]


def _from_pydantic(fault: dict[str, Any]) -> Fault:
    """Return a fault that pydantic found, in the words of this module."""
    loc = tuple(fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = (TABLES.get(str(loc[0]), FleetSpec) if len(loc) > 1 else FleetSpec).model_fields
        return loc, f"unknown key{did_you_mean(str(loc[-1]), known)} (known: {', '.join(known)})"
    if fault["type"] == "missing":
        return loc, "is missing"
    given = fault.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return loc, f"{fault['msg'].removeprefix('Input ')}{shown}"


def _message(path: Path, faults: list[Fault], devices: list[dict[str, Any]], locations: TomlLocations) -> str:
    lines = []
    for location, problem in faults:
        line = locations.line(location) or 0
        lines.append((line, f"{_name(location, devices)}{f' (line {line})' if line else ''}: {problem}"))
    lines.sort()
    count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return f"fleet file {path} has {count}:\n" + "\n".join(f"  {line}" for _, line in lines)


def _name(location: Location, devices: list[dict[str, Any]]) -> str:
    """Return ``device 3 'phone-3', memory_bytes`` for ("device", 2, "memory_bytes"): devices count from 1."""
    if len(location) > 1 and location[0] == "device" and isinstance(location[1], int):
        index = location[1]
        name = devices[index].get("name") if index < len(devices) else None
        parts = [f"device {index + 1} {name!r}" if isinstance(name, str) else f"device {index + 1}"]
        if len(location) > 2:
            parts.append(" ".join(map(str, location[2:])))
        return ", ".join(parts)
    return ".".join(map(str, location)) or "file"
