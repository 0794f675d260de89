"""What the coordinator's end of every engine needs: who is there, what was asked, what came too late, how many bytes.

An engine's link is this class and a way to carry bytes: it gives ``_send`` and calls ``_joined``, ``_left``, ``_said``
and ``_answered``. So all engines mean the same by joining, leaving, no answer in time, and traffic.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import LARGEST, Message, MessageError
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer, Presence, Traffic

LATE = "late"
"""The kind that answers nobody waits for any more are counted as."""
REFUSED = "refused"
"""The kind that bytes which are no message are counted as."""
_OTHER, _KINDS = "other", 32
_SAID_WAITING = 16
"""Messages that a device may have said and nobody has looked at."""

log = logging.getLogger(__name__)


@dataclass
class _Asked:
    """A question that is open."""

    device: str
    packed: bytes
    answer: asyncio.Future[bytes]


class _Listener(AsyncIterator[Presence]):
    """One reader of who comes and goes; a device cannot fill its memory by talking."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Presence, int]] = deque()
        self._said: dict[str, list[int]] = {}
        self._woken = asyncio.Event()

    def tell(self, presence: Presence, size: int = 0) -> None:
        if presence.what == "said":
            said = self._said.setdefault(presence.device, [])
            if len(said) >= _SAID_WAITING or sum(said) + size > LARGEST:
                log.warning("%s says more than is read: a message of %d bytes was dropped", presence.device, size)
                return
            said.append(size)
        self.waiting.append((presence, size))
        self._woken.set()

    async def __anext__(self) -> Presence:
        while not self.waiting:
            self._woken.clear()
            await self._woken.wait()
        presence, size = self.waiting.popleft()
        if presence.what == "said":
            self._said[presence.device].remove(size)
        return presence


@dataclass(eq=False)
class Switchboard(ABC):
    """The part of a ``CoordinatorLink`` that does not depend on the engine."""

    _there: set[str] = field(default_factory=set)
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _counts: dict[str, tuple[Traffic, Traffic]] = field(default_factory=dict)
    _listeners: list[_Listener] = field(default_factory=list)
    _untold: _Listener = field(default_factory=_Listener)
    """What was said before anybody listened: the first who does gets it."""

    async def ask(self, device: str, message: Message, seconds: float) -> Message:
        """See ``CoordinatorLink.ask``."""
        if device not in self._there:
            raise DeviceGone(f"{device!r} is not connected")
        packed = message.pack()
        token = secrets.token_hex(12)
        asked = self._asked[token] = _Asked(device, packed, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(seconds):
                self.traffic(device)[0].count(message.kind, len(packed))
                await self._send(device, token, packed)
                answer = await asked.answer
        except TimeoutError:
            await self._forget(device, token)
            raise NoAnswer(f"{device!r} did not answer a {message.kind!r} message within {seconds:g} s") from None
        except (asyncio.CancelledError, DeviceGone):  # one taken for gone may only have been slow
            await self._forget(device, token)
            raise
        finally:
            self._asked.pop(token, None)
            if asked.answer.done() and not asked.answer.cancelled():
                asked.answer.exception()  # seen, also where the time ran out in the same moment
        return self._unpacked(device, answer)

    def presence(self) -> AsyncIterator[Presence]:
        """See ``CoordinatorLink.presence``; it counts from this call, not from the first step of the iteration."""
        listener = _Listener()
        for device in sorted(self._there):
            listener.tell(Presence(device, "joined"))
        for presence, size in self._untold.waiting:
            if presence.device in self._there:
                listener.tell(presence, size)
        self._untold = _Listener()
        self._listeners.append(listener)
        return listener

    def traffic(self, device: str) -> tuple[Traffic, Traffic]:
        """See ``CoordinatorLink.traffic``: bytes of packed messages, before encryption."""
        return self._counts.setdefault(device, (Traffic({}, {}), Traffic({}, {})))

    @abstractmethod
    async def _send(self, device: str, token: str, packed: bytes) -> None:
        """Carries a question to the device.

        Raises:
            DeviceGone: there is nobody to carry it to.
        """

    @abstractmethod
    async def _forget(self, device: str, token: str) -> None:
        """Tells the device, where it can be told, that a question need not be answered; returns at once."""

    def _joined(self, device: str) -> None:
        if device not in self._there:
            self._there.add(device)
            self._tell(Presence(device, "joined"))

    def _left(self, device: str) -> None:
        if device in self._there:
            self._there.remove(device)
            for token, asked in list(self._asked.items()):
                if asked.device == device:
                    self._failed(token, DeviceGone(f"{device!r} went away before it answered"))
            self._tell(Presence(device, "left"))

    def _said(self, device: str, packed: bytes) -> None:
        try:
            message = self._unpacked(device, packed)
        except MessageError as error:
            log.warning("%s said what is no message: %s", device, error)
        else:
            self._tell(Presence(device, "said", message), len(packed))

    def _answered(self, device: str, token: str, packed: bytes) -> None:
        asked = self._asked.get(token)
        if asked is None or asked.device != device or asked.answer.done():
            self._count(device, LATE, len(packed))
        else:
            asked.answer.set_result(packed)

    def _waits_for(self, device: str, token: str) -> bool:
        asked = self._asked.get(token)
        return asked is not None and asked.device == device

    def _failed(self, token: str, error: Exception) -> None:
        asked = self._asked.get(token)
        if asked is not None and not asked.answer.done():
            asked.answer.set_exception(error)

    def _tell(self, presence: Presence, size: int = 0) -> None:
        if not self._listeners and presence.what == "said":
            self._untold.tell(presence, size)
        for listener in self._listeners:
            listener.tell(presence, size)

    def _unpacked(self, device: str, packed: bytes) -> Message:
        try:
            message = Message.unpack(packed)
        except MessageError:
            self._count(device, REFUSED, len(packed))
            raise
        self._count(device, message.kind, len(packed))
        return message

    def _count(self, device: str, kind: str, size: int) -> None:
        received = self.traffic(device)[1]
        new = kind not in received.bytes
        if new and (len(received.bytes) >= _KINDS or len(kind) > 64):
            kind = _OTHER  # a device that invents kinds cannot fill the memory
        received.count(kind, size)
