"""The part of a coordinator's link that all transports share: presence, open requests, late answers, traffic.

A transport subclasses :class:`RequestReplyLink` with a way to carry bytes: it implements ``_send`` and ``_forget``, and
calls ``_joined``, ``_left`` and ``_answered``. So joining, leaving, time limits and traffic mean the
same in all transports.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

from taskedge.cooperation.protocol.message import Message, MessageError, MessageLimits
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer, Presence, Traffic
from taskedge.cooperation.transport.reader_thread import READER

LATE = "late"
"""Kind under which traffic counts answers that nobody waits for any more."""
REFUSED = "refused"
"""Kind under which traffic counts bytes that are no message."""
_OTHER = "other"
_MAX_KINDS = 32
_MAX_UNREAD = 4
"""Events of a device that may wait unread."""
NO_LIMITS = MessageLimits()


@dataclass
class _Request:
    """A request without an answer yet."""

    device: str
    packed: bytes
    answer: asyncio.Future[bytes]
    limits: MessageLimits
    num_resent: int = 0
    """Times that it was sent again."""


class _PresenceQueue(AsyncIterator[Presence]):
    """The events for one reader. A device that comes and goes faster than they are read cannot fill the memory."""

    def __init__(self) -> None:
        self._waiting: deque[Presence] = deque()
        self._num_unread: Counter[str] = Counter()
        self._woken = asyncio.Event()

    def put(self, presence: Presence) -> None:
        device, unread = presence.device, list[Presence]()
        if (
            self._num_unread[device] >= _MAX_UNREAD or presence.event == "flooded"
        ):  # else thousands need not be searched
            unread = [waiting for waiting in self._waiting if waiting.device == device]
        if len(unread) >= _MAX_UNREAD and {unread[-1].event, presence.event} == {"joined", "left"}:
            dropped = unread[-1]  # it came and went, or went and came
            self._waiting = deque(waiting for waiting in self._waiting if waiting is not dropped)
            self._num_unread[device] -= 1
            return
        if presence.event != "flooded" or all(waiting.event != "flooded" for waiting in unread):
            self._waiting.append(presence)
            self._num_unread[device] += 1
            self._woken.set()

    async def __anext__(self) -> Presence:
        while not self._waiting:
            self._woken.clear()
            await self._woken.wait()
        presence = self._waiting.popleft()
        self._num_unread[presence.device] -= 1
        return presence


@dataclass(eq=False)
class RequestReplyLink(ABC):
    """The part of a ``CoordinatorLink`` that does not depend on the transport."""

    _there: set[str] = field(default_factory=set)
    _requests: dict[str, _Request] = field(default_factory=dict)
    """Open requests by token."""
    _traffic: dict[str, tuple[Traffic, Traffic]] = field(default_factory=dict)
    _queues: list[_PresenceQueue] = field(default_factory=list)

    @property
    def trouble(self) -> str | None:
        """See ``CoordinatorLink.trouble``."""
        return None

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        """See ``CoordinatorLink.request``."""
        if device not in self._there:
            raise DeviceGone(f"{device!r} is not connected")
        packed = message.packed
        token = secrets.token_hex(12)
        request = self._requests[token] = _Request(device, packed, asyncio.get_running_loop().create_future(), limits)
        try:
            async with asyncio.timeout(seconds):
                self.traffic(device)[0].count(message.kind, len(packed))
                await self._send(device, token, packed)
                answer = await request.answer
        except TimeoutError:
            await self._forget(device, token)
            raise NoAnswer(f"{device!r} did not answer a {message.kind!r} message within {seconds:g} s") from None
        except (asyncio.CancelledError, DeviceGone):  # a device taken for gone may only have been slow
            await self._forget(device, token)
            raise
        finally:
            self._requests.pop(token, None)
            if request.answer.done() and not request.answer.cancelled():
                # Mark the exception as retrieved, also if the time ran out in the same moment.
                request.answer.exception()
        try:
            unpacked = await READER.run(partial(Message.unpack, answer, limits), len(answer))
        except MessageError:
            self._count(device, REFUSED, len(answer))
            raise
        self._count(device, unpacked.kind, len(answer))
        return unpacked

    def presence(self) -> AsyncIterator[Presence]:
        """See ``CoordinatorLink.presence``. It counts from this call, not from the first step of the iteration."""
        queue = _PresenceQueue()
        for device in sorted(self._there):
            queue.put(Presence(device, "joined"))
        self._queues.append(queue)
        return queue

    def traffic(self, device: str) -> tuple[Traffic, Traffic]:
        """See ``CoordinatorLink.traffic``. Bytes are of packed messages, before encryption."""
        return self._traffic.setdefault(device, (Traffic({}, {}), Traffic({}, {})))

    @abstractmethod
    async def _send(self, device: str, token: str, packed: bytes) -> None:
        """Carry a request to the device.

        Raises:
            DeviceGone: There is no such device.
        """

    @abstractmethod
    async def _forget(self, device: str, token: str) -> None:
        """Notify the device, if possible, that a request needs no answer any more. Returns at once."""

    def _joined(self, device: str) -> None:
        if device not in self._there:
            self._there.add(device)
            self._publish(Presence(device, "joined"))

    def _left(self, device: str) -> None:
        if device in self._there:
            self._there.remove(device)
            for token, request in list(self._requests.items()):
                if request.device == device:
                    self._fail(token, DeviceGone(f"{device!r} went away before it answered"))
            self._publish(Presence(device, "left"))

    def _answered(self, device: str, token: str, packed: bytes) -> None:
        request = self._requests.get(token)
        if request is None or request.device != device or request.answer.done():
            self._count(device, LATE, len(packed))
        else:
            request.answer.set_result(packed)

    def _waiting_request(self, device: str, token: str) -> _Request | None:
        """Return the open request with this token, if it was sent to this device."""
        request = self._requests.get(token)
        return request if request is not None and request.device == device else None

    def _fail(self, token: str, error: Exception) -> None:
        request = self._requests.get(token)
        if request is not None and not request.answer.done():
            request.answer.set_exception(error)

    def _publish(self, presence: Presence) -> None:
        for queue in self._queues:
            queue.put(presence)

    def _count(self, device: str, kind: str, size: int) -> None:
        received = self.traffic(device)[1]
        is_new = kind not in received.bytes
        if is_new and (len(received.bytes) >= _MAX_KINDS or len(kind) > 64):
            kind = _OTHER  # a device that invents kinds cannot fill the memory
        received.count(kind, size)
