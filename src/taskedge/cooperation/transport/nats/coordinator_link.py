"""The coordinator's link over NATS with mutual TLS. Subjects and permissions are in ``server_config``.

Presence: devices report themselves every two seconds and when they connect. The server reports at once when a
connection ends. A cut line ends no connection: the server notices it within about six seconds by its pings. A device
that is silent for twenty seconds counts as gone in any case, as the server's report may be lost.

Each enrolled device has a subscription and a budget (``flood_guard``) of its own. A device that exceeds its budget is
not listened to for a while: its subscription ends, so the server sends nothing of it here, and it counts as gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskedge.cooperation.protocol.bounds import short_reason
from taskedge.cooperation.protocol.chunking import CHUNK_BYTES, HEADER_BYTES, ChunkAssembler
from taskedge.cooperation.protocol.message import Message, MessageError, MessageLimits
from taskedge.cooperation.transport.flood_guard import FloodGuard, TokenBucket
from taskedge.cooperation.transport.links import Presence
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.connection import HERE_SECONDS, Connection
from taskedge.cooperation.transport.nats.server_config import GONE, WHO, task_subject, up_subject
from taskedge.cooperation.transport.request_reply import NO_LIMITS, REFUSED, RequestReplyLink
from taskedge.errors import InputError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

GONE_SECONDS = 20.0
"""Silence after which a device counts as gone. A busy device reports late, but still answers the server's pings."""
_READ_SECONDS = 5.0
"""Longest wait for unread reports at a time."""
_MAX_RESENT = 3
"""Times that an undelivered request is sent again."""
_MAX_REPORT_BYTES = 1024
_EXPECTED_TIMES = 2
"""An answer may come twice: the second time over a new connection."""
_SENDS_AT_ONCE = 16
"""Messages that are handed to the server at once. More would wait in memory, and be encrypted in one go meanwhile."""
_WARNINGS_BURST, _WARNINGS_PER_SECOND = 20, 0.1
"""Lines about unusable frames on this process' own log, over all devices."""

log = logging.getLogger(__name__)


@dataclass
class _LastReport:
    """A device's last report about itself. It can forge only its own."""

    process: str
    connection: int
    """The server's number of it."""
    at: float
    """``time.monotonic()``."""


class NatsCoordinatorLink(RequestReplyLink):
    """The coordinator's end."""

    def __init__(self, bundle: Path) -> None:
        """Prepare a link without connecting; use :meth:`connect`."""
        super().__init__()
        self._reports: dict[str, _LastReport] = {}
        self._incoming: dict[str, tuple[str, ChunkAssembler]] = {}
        """Token and chunks of the answer under way, by device."""
        self._guards: dict[str, FloodGuard] = {}
        """By enrolled device; each has a subscription, unless it has a penalty."""
        self._warnings = TokenBucket(_WARNINGS_BURST, _WARNINGS_PER_SECOND)
        self._send_locks: dict[str, asyncio.Lock] = {}
        self._sending = asyncio.Semaphore(_SENDS_AT_ONCE)
        self._undelivered: set[str] = set()
        """Tokens of requests that reached the server while the device was away."""
        self._background: set[asyncio.Task[None]] = set()
        self._bundle = Bundle.open(bundle)
        self._devices_at = 0
        """Time of the list of devices that was read last."""
        subscriptions = {GONE: self._on_disconnect}
        self._connection = Connection(self._bundle, subscriptions, self._on_connect, self._on_overflow)
        self._connected_at = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, bundle: Path, seconds: float = 10.0) -> NatsCoordinatorLink:
        """Connect with the coordinator's bundle. The link then reconnects on its own.

        Raises:
            InputError: The bundle cannot be used, or there is no server within ``seconds``.
        """
        link = cls(bundle)
        await link._follow_devices()
        try:
            await asyncio.wait_for(link._connection.client(), seconds)
        except TimeoutError:
            await link.close()
            raise InputError(f"no connection to the server ({link._connection.trouble}): is it running?") from None
        link._watch = asyncio.create_task(link._watch_silence())
        return link

    @property
    def trouble(self) -> str | None:
        """See ``CoordinatorLink.trouble``."""
        return self._connection.trouble

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        """See ``CoordinatorLink.request``."""
        if device in self._guards:
            num_frames = -(-limits.max_bytes // CHUNK_BYTES) + 1
            num_bytes = limits.max_bytes + num_frames * HEADER_BYTES
            self._guards[device].expect(_EXPECTED_TIMES * num_frames, _EXPECTED_TIMES * num_bytes)
        return await super().request(device, message, seconds, limits)

    async def close(self) -> None:
        """See ``CoordinatorLink.close``."""
        if self._watch is not None:
            self._watch.cancel()
        for task in self._background:
            task.cancel()
        await self._connection.close()

    async def _send(self, device: str, token: str, packed: bytes) -> None:
        lock = self._send_locks.setdefault(device, asyncio.Lock())  # the chunks of two messages must not mix
        async with lock, self._sending:
            await self._connection.send(task_subject(device), packed, reply=up_subject(device, "answer", token))

    async def _forget(self, device: str, token: str) -> None:
        client = self._connection.connected
        if client is not None:
            with suppress(Exception):  # the device may also answer in vain
                await client.publish(task_subject(device), b"", reply=up_subject(device, "answer", token))

    async def _on_connect(self, client: Client) -> None:
        self._connected_at = time.monotonic()
        await client.publish(WHO)

    async def _on_message(self, client: Client, msg: Msg) -> None:
        _, _, device, channel, *rest = msg.subject.split(".")
        guard = self._guards.get(device)
        if guard is None or guard.penalty is not None:
            return  # it waited here when the subscription ended
        headers = sum(len(key) + len(value) for key, value in (msg.headers or {}).items())
        excess = guard.excess(len(msg.data) + headers)
        if excess:
            self._stop_listening(device, excess)
            return
        token = rest[0] if rest else ""
        try:
            self._take(device, channel, token, msg)
        except Exception as error:  # whatever a frame makes its reader do, it is that frame that is dropped
            self._count(device, REFUSED, len(msg.data))
            self._warn(device, error)

    def _take(self, device: str, channel: str, token: str, msg: Msg) -> None:
        if channel == "here":
            self._on_report(device, msg.data)
        elif channel != "answer":
            self._count(device, REFUSED, len(msg.data))
        elif self._waiting_request(device, token) is None:
            self._answered(device, token, msg.data)  # too late: only counted
        elif msg.headers and msg.headers.get("Status") == "503":
            self._undelivered.add(token)  # the device may be on its way back: its next report decides
        else:
            self._take_chunk(device, token, msg.data)

    def _take_chunk(self, device: str, token: str, chunk: bytes) -> None:
        request = self._waiting_request(device, token)
        assert request is not None
        token_under_way, assembler = self._incoming.get(device, ("", ChunkAssembler()))
        if token_under_way != token:
            assembler = ChunkAssembler(request.limits.max_bytes)
        self._incoming[device] = token, assembler
        try:
            packed = assembler.add(chunk)
        except MessageError as error:
            self._count(device, REFUSED, len(chunk))
            self._warn(device, error)
            self._fail(token, error)
            return
        if packed is not None:
            del self._incoming[device]
            self._answered(device, token, packed)

    def _on_report(self, device: str, data: bytes) -> None:
        if len(data) > _MAX_REPORT_BYTES:
            raise MessageError(f"a report of {len(data):,} bytes: {_MAX_REPORT_BYTES:,} is the most")
        self._count(device, "here", len(data))
        fields = json.loads(data)
        report = _LastReport(str(fields["process"]), int(fields["connection"]), time.monotonic())
        before = self._reports.get(device)
        is_other_process = before is not None and before.process != report.process
        joins = is_other_process or device not in self._there
        if joins and not self._guards[device].joins.take():
            return  # it comes and goes too often: without a report it counts as gone until it may join again
        if is_other_process:
            self._left(device)  # a new process: whatever the old one held is lost
        self._reports[device] = report
        self._joined(device)
        self._resend_undelivered(device)

    def _resend_undelivered(self, device: str) -> None:
        self._undelivered &= self._requests.keys()
        for token in [token for token in self._undelivered if self._requests[token].device == device]:
            self._undelivered.remove(token)
            request = self._requests[token]
            if request.num_resent < _MAX_RESENT:
                request.num_resent += 1
                self._in_background(asyncio.create_task(self._send(device, token, request.packed)))

    def _on_overflow(self, subject: str) -> None:
        device = subject.split(".")[2] if subject.count(".") > 2 else ""
        guard = self._guards.get(device)
        if guard is not None and guard.penalty is None:
            self._stop_listening(device, "more frames than can be read meanwhile")

    def _stop_listening(self, device: str, why: str) -> None:
        """Begin a penalty: end the device's subscription, and let it count as gone."""
        penalty = self._guards[device].punish(why)
        # in a task of its own: nats-py cancels the callback that ends its own subscription
        self._in_background(asyncio.create_task(self._connection.unsubscribe(up_subject(device, ">"))))
        if device in self._reports:
            self._drop(device)
        self._publish(Presence(device, "flooded", f"it sent {why}: it is not listened to for {penalty.seconds:g} s"))

    async def _follow_devices(self) -> None:
        """Subscribe to enrolled devices and to those whose penalty is over, and unsubscribe from revoked ones."""
        try:
            at = self._bundle.devices_file.stat().st_mtime_ns
            enrolled = self._bundle.devices() if at != self._devices_at else tuple(self._guards)
        except (OSError, InputError):
            if self._devices_at:  # the bundle is being renewed
                return
            raise InputError(f"{self._bundle.devices_file}: is missing: `taskedge cooperate serve` writes it") from None
        self._devices_at = at
        for device in self._guards.keys() - set(enrolled):
            del self._guards[device]
            await self._connection.unsubscribe(up_subject(device, ">"))
        for device in enrolled:
            guard = self._guards.get(device)
            if guard is None:
                self._guards[device] = FloodGuard()
            if guard is None or guard.is_over():
                await self._connection.subscribe(up_subject(device, ">"), self._on_message)

    def _in_background(self, task: asyncio.Task[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _warn(self, device: str, error: Exception) -> None:
        if self._warnings.take():
            log.warning("%s: %s", device, short_reason(error))

    async def _on_disconnect(self, client: Client, msg: Msg) -> None:
        event = json.loads(msg.data)
        # A server that stops reports every connection: devices come back with it, and keep working meanwhile.
        if event.get("reason") == "Server Shutdown":
            return
        name = event["client"]["user"].split(",")[0].removeprefix("CN=")
        report = self._reports.get(name)
        if report is not None and report.connection == event["client"]["id"]:  # not one that was replaced since
            self._drop(name)

    def _drop(self, device: str) -> None:
        del self._reports[device]
        self._incoming.pop(device, None)
        self._left(device)

    async def _watch_silence(self) -> None:
        """Drop devices that are silent for too long, counting only the time in which this process could hear them."""
        hearing_since = last_awake = time.monotonic()
        while True:
            await asyncio.sleep(HERE_SECONDS / 4)
            now = time.monotonic()
            if now - last_awake > HERE_SECONDS:  # this process was suspended
                hearing_since = now
            last_awake = now
            await self._follow_devices()
            await self._connection.client()
            hearing_since = max(hearing_since, self._connected_at)
            if self._silent(hearing_since) and await self._has_read_everything():
                for device in self._silent(max(hearing_since, self._connected_at)):
                    self._drop(device)
            last_awake = time.monotonic()  # the waiting above was no suspension

    def _silent(self, hearing_since: float) -> list[str]:
        now = time.monotonic()
        return [
            device for device, report in self._reports.items() if now - max(report.at, hearing_since) > GONE_SECONDS
        ]

    async def _has_read_everything(self) -> bool:
        """Return whether every report that the server has is read: answers of many devices may be before it."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                return await self._connection.caught_up(await self._connection.client())
        except TimeoutError:
            return False
