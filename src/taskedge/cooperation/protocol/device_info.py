"""A device's description of itself: its answer to a ``hello`` message."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

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
        }
        return Message("hello", header)


def read_device_info(answer: Message) -> DeviceInfo:
    """Read a device's answer to ``hello``.

    Raises:
        MessageError: The answer is no ``hello`` of this protocol, or a field is missing or malformed.
    """
    header = answer.header
    if answer.kind != "hello" or header.get("protocol") != PROTOCOL:
        raise MessageError(f"it speaks protocol {header.get('protocol')!r}, not {PROTOCOL}: install the same taskedge")
    try:
        profile = header["profile"]
        version = header["version"]
        return DeviceInfo(
            base=str(header["base"]),
            labels=tuple(map(str, header["labels"])),
            rows=int(header["rows"]),
            memory_bytes=max(1.0, float(header["memory_bytes"])),
            profile=None if profile is None else Profile.model_validate(profile),
            run=str(header["run"]),
            version=None if version is None else int(version),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
        raise MessageError(f"it does not say who it is ({type(error).__name__}: {error})") from None
