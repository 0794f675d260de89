"""From flags and a settings file to settings, with all faults told at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taskedge.errors import InputError, did_you_mean
from taskedge.training.tune_config import TuneSettings


def settle(flags: Mapping[str, Any], config: Path | None = None) -> TuneSettings:
    """Flags over the settings file over defaults.

    Raises:
        InputError: all faults in one message, each with its place; an unknown key names the nearest known one.
    """
    stored = _read_toml(config) if config else {}
    try:
        return TuneSettings(**{**stored, **flags})
    except ValidationError as error:
        faults = [
            _say(fault, config if fault["loc"] and str(fault["loc"][0]) not in flags else None)
            for fault in error.errors()
        ]
    if len(faults) == 1:
        raise InputError(faults[0])
    raise InputError(f"{len(faults)} settings cannot be used:" + "".join(f"\n  {fault}" for fault in faults))


def _say(fault: Any, config: Path | None) -> str:
    """One fault of pydantic's in our words; ``config``: the file that the value came from, or None for a flag."""
    name = str(fault["loc"][0]) if fault["loc"] else ""
    flag = f"--{name.replace('_', '-')}"
    if fault["type"] == "missing":
        return f"{flag} is needed: {str(TuneSettings.model_fields[name].description).rstrip('.')}"
    if not name:  # of settings together
        return str(fault["msg"]).removeprefix("Value error, ")
    place = f"{config}: {name}" if config else flag
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown setting{did_you_mean(name, TuneSettings.model_fields)}"
    if fault["type"] == "value_error":
        return f"{place}: {fault['msg'].removeprefix('Value error, ')}"
    return f"{place}: {fault['msg'].replace('Input should be', 'must be', 1)} (given: {fault['input']!r})"


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings in a file, by their names with underscores."""
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    twice = [key for key in stored if "-" in key and key.replace("-", "_") in stored]
    if twice:
        raise InputError(f"{path}: {twice[0]} stands there twice, with dashes and with underscores: remove one")
    return {key.replace("-", "_"): value for key, value in stored.items()}
