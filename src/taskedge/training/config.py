"""Base class of all settings, and the function that reads them from flags and a TOML file.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from taskedge.errors import InputError, did_you_mean


class Config(BaseModel):
    """Settings of one part of the program. Instances are frozen; unknown names are refused.

    A field is declared with its type, its constraints, its description (which is the help text of the flag) and its
    default, and nowhere else. Every fault of the values is reported in one :class:`InvalidConfig`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    old_names: ClassVar[Mapping[str, str]] = {}
    """Former name of a setting -> its present name. Settings files may still have the former one."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidConfig(type(self), error.errors()) from None


C = TypeVar("C", bound=Config)


class InvalidConfig(InputError):
    """Values that a settings class refuses. ``faults``: pydantic's descriptions, one for each fault."""

    def __init__(self, config_class: type[Config], faults: Sequence[Any]) -> None:
        self.config_class, self.faults = config_class, faults
        super().__init__("; ".join(_describe(config_class, fault) for fault in faults))


def load_config(config_class: type[C], flags: Mapping[str, Any], path: Path | None = None) -> C:
    """Return the settings that flags, a settings file and the defaults give, in this order of precedence.

    Args:
        config_class: the settings to make.
        flags: values by field name, those that the command line gives only.
        path: a TOML file whose keys are field names, with dashes or underscores.

    Raises:
        InputError: all faults in one message, each with its flag or its key in the file; an unknown key names the
            nearest known one.
    """
    stored = _read_toml(path, config_class.old_names) if path else {}
    try:
        return config_class(**{**stored, **flags})
    except InvalidConfig as error:
        faults = [_describe(config_class, fault, flags, path) for fault in error.faults]
    if len(faults) == 1:
        raise InputError(faults[0])
    raise InputError(f"{len(faults)} settings cannot be used:" + "".join(f"\n  {fault}" for fault in faults))


def flag_text(name: str, value: Any) -> str:
    """Return a setting as a user types it: ``--rank 3``, ``--no-warmup``; ``no --rank`` if it is not given."""
    flag = f"--{name.replace('_', '-')}"
    if value is None or value in ([], ()):
        return f"no {flag}"
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{flag} {shlex.quote(str(one))}" for one in values)


def changes_text(before: Mapping[str, Any], now: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """Return the settings that differ, with both values, as a user types them; empty if none does.

    Args:
        before: the earlier settings.
        now: the present settings. Only these are compared.
        names: words for entries that are no settings, such as digests, whose values are not shown.
    """
    words = names or {}
    return ", ".join(
        words[name] if name in words else f"{flag_text(name, before.get(name))} (now {flag_text(name, now[name])})"
        for name in now
        if before.get(name) != now[name]
    )


def _describe(
    config_class: type[Config], fault: Any, flags: Mapping[str, Any] | None = None, path: Path | None = None
) -> str:
    """Return one fault as a line of text.

    ``flags`` None: the values come from Python. Otherwise a value that is not among ``flags`` comes from ``path``.
    """
    name = str(fault["loc"][0]) if fault["loc"] else ""
    message = fault["msg"].removeprefix("Value error, ")
    if not name:  # about several settings together
        return str(message)
    flag = f"--{name.replace('_', '-')}"
    where = flag
    if flags is None:
        where = name
    elif path and name not in flags:
        where = f"{path}: {name}"
    if fault["type"] == "missing":
        description = str(config_class.model_fields[name].description).rstrip(".")
        return f"{name if flags is None else flag} is needed: {description}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown setting{did_you_mean(name, config_class.model_fields)}"
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    message = message.replace("Input should be", "must be", 1)
    if fault["type"] == "literal_error":
        message += did_you_mean(str(fault["input"]), re.findall("'([^']+)'", fault["ctx"]["expected"]))
    if flags is None:
        return f"{name}={fault['input']!r} {message}"
    return f"{where}: {message} (given: {fault['input']!r})"


def _read_toml(path: Path, old_names: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in a file by their present names, with underscores."""
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    repeated = [key for key in stored if "-" in key and key.replace("-", "_") in stored]
    if repeated:
        raise InputError(f"{path}: {repeated[0]} is set twice, with dashes and with underscores: remove one")
    settings = {key.replace("-", "_"): value for key, value in stored.items()}
    return {old_names.get(key, key): value for key, value in settings.items()}
