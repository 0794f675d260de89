"""The part of a coordinator's link that all transports share: presence, open requests, late answers, traffic.

A transport subclasses :class:`RequestReplyLink` with a way to carry bytes: it implements ``_send`` and ``_forget``, and
calls ``_joined``, ``_left``, ``_received`` and ``_answered``. So joining, leaving, time limits and traffic mean the
same in all transports.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, Message, MessageError
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer, Presence, Traffic

LATE = "late"
"""Kind under which traffic counts answers that nobody waits for any more."""
REFUSED = "refused"
"""Kind under which traffic counts bytes that are no message."""
_OTHER = "other"
_MAX_KINDS = 32
_MAX_UNREAD = 16
"""Messages of a device, sent without a request, that may wait unread."""

log = logging.getLogger(__name__)


@dataclass
class _Request:
    """A request without an answer yet."""

    device: str
    packed: bytes
    answer: asyncio.Future[bytes]


class _PresenceQueue(AsyncIterator[Presence]):
    """The events for one reader. A device cannot fill the memory by sending messages."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Presence, int]] = deque()
        self._unread_sizes: dict[str, list[int]] = {}
        self._woken = asyncio.Event()

    def put(self, presence: Presence, size: int = 0) -> None:
        if presence.event == "message":
            sizes = self._unread_sizes.setdefault(presence.device, [])
            if len(sizes) >= _MAX_UNREAD or sum(sizes) + size > MAX_MESSAGE_BYTES:
                log.warning("%s sends more than is read: a message of %d bytes was dropped", presence.device, size)
                return
            sizes.append(size)
        self.waiting.append((presence, size))
        self._woken.set()

    async def __anext__(self) -> Presence:
        while not self.waiting:
            self._woken.clear()
            await self._woken.wait()
        presence, size = self.waiting.popleft()
        if presence.event == "message":
            self._unread_sizes[presence.device].remove(size)
        return presence


@dataclass(eq=False)
class RequestReplyLink(ABC):
    """The part of a ``CoordinatorLink`` that does not depend on the transport."""

    _there: set[str] = field(default_factory=set)
    _requests: dict[str, _Request] = field(default_factory=dict)
    """Open requests by token."""
    _traffic: dict[str, tuple[Traffic, Traffic]] = field(default_factory=dict)
    _queues: list[_PresenceQueue] = field(default_factory=list)
    _before_readers: _PresenceQueue = field(default_factory=_PresenceQueue)
    """Messages from before the first reader, who gets them."""

    async def request(self, device: str, message: Message, seconds: float) -> Message:
        """See ``CoordinatorLink.request``."""
        if device not in self._there:
            raise DeviceGone(f"{device!r} is not connected")
        packed = message.pack()
        token = secrets.token_hex(12)
        request = self._requests[token] = _Request(device, packed, asyncio.get_running_loop().create_future())
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
        return self._unpack(device, answer)

    def presence(self) -> AsyncIterator[Presence]:
        """See ``CoordinatorLink.presence``. It counts from this call, not from the first step of the iteration."""
        queue = _PresenceQueue()
        for device in sorted(self._there):
            queue.put(Presence(device, "joined"))
        for presence, size in self._before_readers.waiting:
            if presence.device in self._there:
                queue.put(presence, size)
        self._before_readers = _PresenceQueue()
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

    def _received(self, device: str, packed: bytes) -> None:
        """Take a message that was sent without a request."""
        try:
            message = self._unpack(device, packed)
        except MessageError as error:
            log.warning("%s sent bytes that are no message: %s", device, error)
        else:
            self._publish(Presence(device, "message", message), len(packed))

    def _answered(self, device: str, token: str, packed: bytes) -> None:
        request = self._requests.get(token)
        if request is None or request.device != device or request.answer.done():
            self._count(device, LATE, len(packed))
        else:
            request.answer.set_result(packed)

    def _waits_for(self, device: str, token: str) -> bool:
        request = self._requests.get(token)
        return request is not None and request.device == device

    def _fail(self, token: str, error: Exception) -> None:
        request = self._requests.get(token)
        if request is not None and not request.answer.done():
            request.answer.set_exception(error)

    def _publish(self, presence: Presence, size: int = 0) -> None:
        if not self._queues and presence.event == "message":
            self._before_readers.put(presence, size)
        for queue in self._queues:
            queue.put(presence, size)

    def _unpack(self, device: str, packed: bytes) -> Message:
        try:
            message = Message.unpack(packed)
        except MessageError:
            self._count(device, REFUSED, len(packed))
            raise
        self._count(device, message.kind, len(packed))
        return message

    def _count(self, device: str, kind: str, size: int) -> None:
        received = self.traffic(device)[1]
        is_new = kind not in received.bytes
        if is_new and (len(received.bytes) >= _MAX_KINDS or len(kind) > 64):
            kind = _OTHER  # a device that invents kinds cannot fill the memory
        received.count(kind, size)
