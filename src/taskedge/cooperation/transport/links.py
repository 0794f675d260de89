"""What an engine must do: carry messages between one coordinator and its devices, and say who is there.

The names of devices are those that the engine has proved (a certificate's), never what a message claims.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from taskedge.cooperation.protocol.message import Message
from taskedge.errors import TaskEdgeError


class DeviceGone(TaskEdgeError):
    """The device is not connected, or went away before it answered."""


class NoAnswer(TaskEdgeError):
    """The device did not answer in time."""


@dataclass(frozen=True)
class Presence:
    """A device came, left, or said something unasked."""

    device: str
    what: Literal["joined", "left", "said"]
    message: Message | None = None
    """What it said (with "said")."""


@dataclass
class Traffic:
    """Bytes and messages over one direction of one device's link, by kind of message."""

    bytes: dict[str, int]
    messages: dict[str, int]

    def count(self, kind: str, size: int) -> None:
        """Adds one message."""
        self.bytes[kind] = self.bytes.get(kind, 0) + size
        self.messages[kind] = self.messages.get(kind, 0) + 1


class CoordinatorLink(Protocol):
    """The coordinator's end."""

    async def ask(self, device: str, message: Message, seconds: float) -> Message:
        """Sends ``message`` and returns the device's answer.

        Raises:
            NoAnswer: none within ``seconds``; one that comes later is dropped.
            DeviceGone: the device is not there, or left meanwhile.
            MessageError: what it answered is no message.
        """
        ...

    def presence(self) -> AsyncIterator[Presence]:
        """Who comes and goes from now on, and what devices say unasked; who is there already comes first."""
        ...

    def traffic(self, device: str) -> tuple[Traffic, Traffic]:
        """What was sent to the device and what came from it so far."""
        ...

    async def close(self) -> None:
        """Ends the connection; devices stay where they are."""
        ...


class DeviceLink(Protocol):
    """A device's end."""

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        """Answers the coordinator's messages one after the other until cancelled; reconnects however long it takes."""
        ...

    async def say(self, message: Message) -> None:
        """Sends something unasked (a profile, a heartbeat)."""
        ...

    async def close(self) -> None:
        """Leaves."""
        ...
