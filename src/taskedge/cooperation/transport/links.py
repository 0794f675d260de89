"""Interface of a transport: carry messages between one coordinator and its devices, and report who is there.

Names of devices are the ones that the transport has proved (by a certificate), never a claim in a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from taskedge.cooperation.protocol.message import Message
from taskedge.errors import TaskEdgeError

Handler = Callable[[Message], Awaitable[Message]]
"""Answers one message of the coordinator."""


class DeviceGone(TaskEdgeError):
    """The device is not connected, or left before it answered."""


class NoAnswer(TaskEdgeError):
    """The device did not answer in time."""


@dataclass(frozen=True)
class Presence:
    """A device joined, left, or sent a message without a request."""

    device: str
    event: Literal["joined", "left", "message"]
    message: Message | None = None
    """The message, with ``event="message"``."""


@dataclass
class Traffic:
    """Bytes and messages over one direction of one device's link, by kind of message."""

    bytes: dict[str, int]
    messages: dict[str, int]

    def count(self, kind: str, size: int) -> None:
        """Add one message."""
        self.bytes[kind] = self.bytes.get(kind, 0) + size
        self.messages[kind] = self.messages.get(kind, 0) + 1


class CoordinatorLink(Protocol):
    """The coordinator's end."""

    async def request(self, device: str, message: Message, seconds: float) -> Message:
        """Send ``message`` and return the device's answer.

        Raises:
            NoAnswer: No answer came within ``seconds``. A later answer is dropped.
            DeviceGone: The device is not there, or left meanwhile.
            MessageError: The answer is no message.
        """
        ...

    def presence(self) -> AsyncIterator[Presence]:
        """Return an iterator over events from this call on; it starts with the devices that are there already."""
        ...

    def traffic(self, device: str) -> tuple[Traffic, Traffic]:
        """Return the traffic to the device and from it, so far."""
        ...

    async def close(self) -> None:
        """End the connection. Devices stay where they are."""
        ...


class DeviceLink(Protocol):
    """A device's end."""

    async def serve(self, handler: Handler) -> None:
        """Answer the coordinator's messages one after another until cancelled. Reconnect however long it takes."""
        ...

    async def send(self, message: Message) -> None:
        """Send a message without a request (a profile, a metric)."""
        ...

    async def close(self) -> None:
        """Leave."""
        ...
