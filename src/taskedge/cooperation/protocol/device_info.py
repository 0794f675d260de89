"""A device's description of itself: its answer to a ``hello`` message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskedge.cooperation.protocol.bounds import (
    MAX_MEASURED,
    MAX_MEMORY_BYTES,
    MAX_ROWS,
    MAX_VERSION,
    MIN_MEASURED,
    bounded_count,
    bounded_number,
    is_finite_tree,
    short_reason,
    short_text,
)
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.profiling.profile_file import Profile

PROTOCOL = 2
"""Version of the messages. Coordinator and devices must have the same one."""


@dataclass(frozen=True)
class DeviceInfo:
    """A device's report about itself. None of it is proved."""

    base: str
    """Digest of its base."""
    labels: tuple[str, ...]
    rows: int
    memory_bytes: float
    profile: Profile | None
    run: str
    """The last run that it took part in; empty if none."""
    version: int | None
    """The version of that run's values that it has; None: no support is installed."""
    support: str = ""
    """Digest of the installed support; empty if none is installed, or if the device is of an earlier revision."""
    min_rows: int = 1
    """Fewest rows of a step that it trains on; 1 if the device is of an earlier revision."""

    def message(self) -> Message:
        """Return the answer to ``hello``."""
        header = {
            "protocol": PROTOCOL,
            "base": self.base,
            "labels": list(self.labels),
            "rows": self.rows,
            "memory_bytes": self.memory_bytes,
            "profile": None if self.profile is None else self.profile.model_dump(),
            "run": self.run,
            "version": self.version,
            "support": self.support,
            "min_rows": self.min_rows,
        }
        return Message("hello", header)


def read_device_info(answer: Message) -> DeviceInfo:
    """Read a device's answer to ``hello``.

    Raises:
        MessageError: The answer is no ``hello`` of this protocol, or a field is missing, malformed or out of range.
    """
    header = answer.header
    if answer.kind != "hello" or header.get("protocol") != PROTOCOL:
        spoken = short_text(header.get("protocol"))
        raise MessageError(f"it speaks protocol {spoken}, not {PROTOCOL}: install the same taskedge")
    try:
        return _read(header)
    except Exception as error:  # whatever its fields make the checks do
        raise MessageError(
            f"it does not say who it is ({type(error).__name__}: {short_reason(error)}): install the same taskedge"
        ) from None


def _read(header: Any) -> DeviceInfo:
    rows = bounded_count(header["rows"], 0, MAX_ROWS)
    memory = bounded_number(header["memory_bytes"], 1.0, MAX_MEMORY_BYTES)
    version = None if header["version"] is None else bounded_count(header["version"], 0, MAX_VERSION)
    min_rows = bounded_count(header.get("min_rows", 1), 0, MAX_ROWS)
    labels = header["labels"]
    for name, wrong in (
        ("rows", rows is None),
        ("min_rows", min_rows is None),
        ("memory_bytes", memory is None),
        ("version", header["version"] is not None and version is None),
        ("labels", not isinstance(labels, list)),
    ):
        if wrong:
            raise ValueError(f"its {name} are {short_text(header[name])}")
    assert rows is not None
    assert min_rows is not None
    assert memory is not None
    return DeviceInfo(
        base=str(header["base"]),
        labels=tuple(map(str, labels)),
        rows=rows,
        memory_bytes=memory,
        profile=_read_profile(header["profile"]),
        run=str(header["run"]),
        version=version,
        support=str(header.get("support", "")),
        min_rows=min_rows,
    )


def _read_profile(fields: Any) -> Profile | None:
    if fields is None:
        return None
    if not is_finite_tree(fields, MIN_MEASURED, MAX_MEASURED):
        raise ValueError(f"a number of its profile is outside of {MIN_MEASURED:g} to {MAX_MEASURED:g}")
    return Profile.model_validate(fields)
