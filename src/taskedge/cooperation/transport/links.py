"""Interface of a transport: carry messages between one coordinator and its devices, and report who is there.

Names of devices are the ones that the transport has proved (by a certificate), never a claim in a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.errors import TaskEdgeError

Handler = Callable[[Message], Awaitable[Message]]
"""Answers one message of the coordinator."""


class DeviceGone(TaskEdgeError):
    """The device is not connected, or left before it answered."""


class NoAnswer(TaskEdgeError):
    """The device did not answer in time."""


@dataclass(frozen=True)
class Presence:
    """A device joined or left, or sent so much that it is not listened to for a while."""

    device: str
    event: Literal["joined", "left", "flooded"]
    why: str = ""
    """What it sent, with ``event="flooded"``. A device that floods leaves as well."""


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

    @property
    def trouble(self) -> str | None:
        """Why no device can be reached now, such as a server that does not run; None if nothing is known."""
        ...

    async def request(self, device: str, message: Message, seconds: float, limits: MessageLimits = ...) -> Message:
        """Send ``message`` and return the device's answer, which may have up to ``limits``.

        Raises:
            NoAnswer: No answer came within ``seconds``. A later answer is dropped.
            DeviceGone: The device is not there, or left meanwhile.
            MessageError: The answer is no message, or is beyond ``limits``.
        """
        ...

    def presence(self) -> AsyncIterator[Presence]:
        """Return an iterator over events from this call on; it starts with the devices that are there already.

        Events of a device that joins and leaves faster than they are read are dropped in pairs.
        """
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

    async def close(self) -> None:
        """Leave."""
        ...


def trouble_text(link: CoordinatorLink) -> str:
    """Return the link's trouble as a part of an error message; empty without one."""
    return f"; no device can be reached ({link.trouble})" if link.trouble else ""
