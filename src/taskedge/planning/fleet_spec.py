"""The fleet file: server, channel and devices, read from TOML and checked whole.

All faults of a file are reported together, each with its place (table, device, line) and, for an unknown key, the
nearest known one. A profile that a device names is read and checked here too, so a fleet that loads is complete.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, ValidationError

from taskedge.errors import InputError, did_you_mean
from taskedge.planning.toml_locations import Places
from taskedge.profiling.profile_file import NotNegative, Positive, Profile, Row, read_profile

TOKEN_BYTES = 8  # a token id is an int64
COMPUTE_KEYS = ("profile", "flops_per_second")
LINK_KEYS = ("gain_db", "distance_metres", "wired_bits_per_second")


class Server(Row):
    """Broadcasts the trained values to every device at the same rate, and aggregates what comes back."""

    downlink_bits_per_second: Positive = 50e6
    aggregation_seconds: NotNegative = 0.0


class Channel(Row):
    """The shared uplink."""

    bandwidth_hz: Positive
    noise_dbm_per_hz: Annotated[float, Field(ge=-400, le=100)] = -174.0
    bytes_per_value: Positive = 4.0
    reference_gain_db: Annotated[float, Field(ge=-400, le=100)] = -30.0  # gain at one metre
    path_loss_exponent: Annotated[float, Field(ge=1, le=10)] = 3.0


class Task(Row):
    """What the fleet trains, where the command line does not say it."""

    path: str
    budget: str = "0.1%"
    sequence_tokens: Annotated[int, Field(ge=1)] = 128


class Device(Row):
    """One device: how fast it computes, what it can hold, and its link."""

    name: Annotated[str, Field(min_length=1)]
    profile: str | None = None
    flops_per_second: Positive | None = None
    utilisation_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    memory_bytes: Positive
    reserved_bytes: NotNegative = 0.0  # of the memory, what others use
    tokens_per_round: Positive
    batch_sequences: Annotated[int, Field(ge=1)] = 8
    transmit_watts: Positive | None = None
    gain_db: Annotated[float, Field(ge=-400, le=100)] | None = None
    distance_metres: Positive | None = None
    wired_bits_per_second: Positive | None = None

    _profile: Profile | None = PrivateAttr(default=None)

    @property
    def measured(self) -> Profile | None:
        """The profile that ``profile`` names, read with the fleet."""
        return self._profile

    @property
    def flops(self) -> float:
        """Sustained FLOP/s of a device without a profile."""
        assert self.flops_per_second is not None
        assert self.utilisation_ratio is not None
        return self.flops_per_second * self.utilisation_ratio


class Fleet(Row):
    """Everything a plan needs to know of who takes part."""

    server: Server = Server()
    channel: Channel
    model: Task | None = None
    device: Annotated[list[Device], Field(min_length=1)]

    def gains(self) -> NDArray[np.float64]:
        """Mean power gain of each device's link, [K]; wired devices get NaN.

        ``gain_db`` as given, else log-distance path loss: reference gain minus 10·exponent·log10(max(distance, 1 m)).
        """
        gain = [math.nan if one.wired_bits_per_second is not None else self._gain_db(one) for one in self.device]
        return np.asarray(10 ** (np.array(gain) / 10), dtype=np.float64)

    def snr_hz(self, gains: NDArray[np.float64]) -> NDArray[np.float64]:
        """p·h/N0 [Hz] of each device at power gains ``gains`` [K]; NaN for wired devices."""
        noise = 10 ** (self.channel.noise_dbm_per_hz / 10) / 1e3  # W/Hz
        power = np.array([one.transmit_watts or math.nan for one in self.device])
        return np.asarray(power * gains / noise, dtype=np.float64)

    def wired(self) -> NDArray[np.float64]:
        """Fixed uplink rate [bit/s] of each device, NaN for those on the radio channel."""
        return np.array([one.wired_bits_per_second or math.nan for one in self.device])

    def _gain_db(self, device: Device) -> float:
        if device.gain_db is not None:
            return device.gain_db
        assert device.distance_metres is not None
        loss = 10 * self.channel.path_loss_exponent * math.log10(max(device.distance_metres, 1.0))
        return self.channel.reference_gain_db - loss


TABLES: dict[str, type[Row]] = {"server": Server, "channel": Channel, "model": Task, "device": Device}


def load_fleet(path: Path) -> Fleet:
    """Reads and checks a fleet file.

    Raises:
        InputError: the file cannot be read, or has faults; the message lists every one of them with its place.
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
    return parse_fleet(raw, path, Places(text))


def parse_fleet(raw: dict[str, Any], path: Path, places: Places | None = None) -> Fleet:
    """The fleet of an already parsed document; ``path`` is named in messages and profiles are looked up beside it."""
    places = places or Places("")
    faults: list[tuple[tuple[str | int, ...], str]] = []
    fleet: Fleet | None = None
    try:
        fleet = Fleet.model_validate(raw)
    except ValidationError as error:
        faults += [_explain(dict(fault)) for fault in error.errors()]
    rows = raw.get("device")
    devices = [row if isinstance(row, dict) else {} for row in rows] if isinstance(rows, list) else []
    faults += _crosswise(devices, raw)
    profiles: dict[int, Profile] = {}
    for index, device in enumerate(devices):
        if isinstance(device.get("profile"), str):
            try:
                profiles[index] = read_profile(path.parent / device["profile"])
            except InputError as error:
                faults.append((("device", index, "profile"), str(error)))
    if faults or fleet is None:
        raise InputError(_message(path, faults, devices, places))
    for index, profile in profiles.items():
        fleet.device[index]._profile = profile
    return fleet


def _crosswise(devices: list[dict[str, Any]], raw: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Faults that no single key shows. Works on the raw rows, so that it also runs where single keys are wrong."""
    faults: list[tuple[tuple[str | int, ...], str]] = []
    names = Counter(name for device in devices if isinstance(name := device.get("name"), str))
    model = raw.get("model")
    length = model.get("sequence_tokens") if isinstance(model, dict) else None
    default_length = length if isinstance(length, int) else Task.model_fields["sequence_tokens"].default
    seen: set[str] = set()
    for index, device in enumerate(devices):
        at = ("device", index)
        name = device.get("name")
        if isinstance(name, str) and names[name] > 1:
            if name in seen:
                faults.append(((*at, "name"), f"the name {name!r} is used {names[name]} times; give each its own"))
            seen.add(name)
        faults += _one_of(device, at, COMPUTE_KEYS, "how fast it computes")
        faults += _one_of(device, at, LINK_KEYS, "its link")
        if "profile" in device:
            extra = [key for key in ("utilisation_ratio", "batch_sequences") if key in device]
            faults += [((*at, key), "the profile already fixes it; remove it") for key in extra]
        if "flops_per_second" in device and "utilisation_ratio" not in device:
            faults.append((at, "utilisation_ratio is missing: the share of flops_per_second that training reaches"))
        if ("gain_db" in device or "distance_metres" in device) and "transmit_watts" not in device:
            faults.append((at, "transmit_watts is missing: a radio link needs its power"))
        faults += _sizes(device, at, default_length)
    return faults


def _sizes(device: dict[str, Any], at: tuple[str | int, ...], length: int) -> list[tuple[tuple[str | int, ...], str]]:
    sequences = device.get("batch_sequences", Device.model_fields["batch_sequences"].default)
    if "profile" in device or not isinstance(sequences, int) or sequences < 1:
        return []
    tokens = sequences * length
    faults: list[tuple[tuple[str | int, ...], str]] = []
    memory, per_round = device.get("memory_bytes"), device.get("tokens_per_round")
    if _is_number(memory) and 0 < memory < tokens * TOKEN_BYTES:
        why = f"{memory:g} bytes cannot hold the {tokens} token ids of one batch; is the unit bytes?"
        faults.append(((*at, "memory_bytes"), why))
    if _is_number(per_round) and 0 < per_round < tokens:
        why = f"{per_round:g} is less than one batch ({sequences} sequences of {length} tokens)"
        faults.append(((*at, "tokens_per_round"), why))
    return faults


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(
    device: dict[str, Any], at: tuple[str | int, ...], keys: tuple[str, ...], what: str
) -> list[tuple[tuple[str | int, ...], str]]:
    given = [key for key in keys if key in device]
    if len(given) == 1:
        return []
    problem = f"{' and '.join(given)} both say {what}" if given else f"nothing says {what}"
    return [(at, f"{problem}; give one of {', '.join(keys)}")]


def _explain(fault: dict[str, Any]) -> tuple[tuple[str | int, ...], str]:
    """A pydantic fault as (place, words)."""
    loc = tuple(fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = (TABLES.get(str(loc[0]), Fleet) if len(loc) > 1 else Fleet).model_fields
        return loc, f"unknown key{did_you_mean(str(loc[-1]), known)} (known: {', '.join(known)})"
    if fault["type"] == "missing":
        return loc, "is missing"
    given = fault.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return loc, f"{fault['msg'].removeprefix('Input ')}{shown}"


def _message(
    path: Path,
    faults: list[tuple[tuple[str | int, ...], str]],
    devices: list[dict[str, Any]],
    places: Places,
) -> str:
    lines = []
    for loc, what in faults:
        line = places.line(loc) or 0
        lines.append((line, f"{_name(loc, devices)}{f' (line {line})' if line else ''}: {what}"))
    lines.sort()
    count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return f"fleet file {path} has {count}:\n" + "\n".join(f"  {line}" for _, line in lines)


def _name(loc: tuple[str | int, ...], devices: list[dict[str, Any]]) -> str:
    """``device[2] 'phone-3' memory_bytes`` for ("device", 2, "memory_bytes"); devices count from 1, as people do."""
    if len(loc) > 1 and loc[0] == "device" and isinstance(loc[1], int):
        name = devices[loc[1]].get("name") if loc[1] < len(devices) else None
        rest = " ".join(map(str, loc[2:]))
        return f"device {loc[1] + 1}{f' {name!r}' if isinstance(name, str) else ''}{f', {rest}' if rest else ''}"
    return ".".join(map(str, loc)) or "file"
