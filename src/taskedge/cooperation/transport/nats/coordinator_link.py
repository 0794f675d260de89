"""The coordinator's link over NATS with mutual TLS. Subjects and permissions are in ``server_config``.

Presence: devices report themselves every two seconds and when they connect. The server reports at once when a
connection ends. A cut line reports nothing, so a device that was silent for six seconds counts as gone, too.
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

from taskedge.cooperation.protocol.chunking import ChunkAssembler
from taskedge.cooperation.protocol.message import MessageError
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.connection import HERE_SECONDS, Connection
from taskedge.cooperation.transport.nats.server_config import GONE, WHO, task_subject, up_subject
from taskedge.cooperation.transport.request_reply import REFUSED, RequestReplyLink
from taskedge.errors import InputError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

GONE_SECONDS = 6.0
"""Silence after which a device counts as gone."""

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
        self._incoming: dict[tuple[str, str], tuple[str, ChunkAssembler]] = {}
        """Token and chunks of the message under way, by device and channel."""
        self._send_locks: dict[str, asyncio.Lock] = {}
        self._undelivered: set[str] = set()
        """Tokens of requests that reached the server while the device was away."""
        self._resending: set[asyncio.Task[None]] = set()
        subscriptions = {up_subject("*", ">"): self._on_message, GONE: self._on_disconnect}
        self._connection = Connection(Bundle.open(bundle), subscriptions, self._on_connect)
        self._connected_at = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, bundle: Path, seconds: float = 10.0) -> NatsCoordinatorLink:
        """Connect with the coordinator's bundle. The link then reconnects on its own.

        Raises:
            InputError: The bundle cannot be used, or there is no server within ``seconds``.
        """
        link = cls(bundle)
        try:
            await asyncio.wait_for(link._connection.client(), seconds)
        except TimeoutError:
            await link.close()
            raise InputError(f"no connection to the server ({link._connection.trouble}): is it running?") from None
        link._watch = asyncio.create_task(link._watch_silence())
        return link

    async def close(self) -> None:
        """See ``CoordinatorLink.close``."""
        if self._watch is not None:
            self._watch.cancel()
        for task in self._resending:
            task.cancel()
        await self._connection.close()

    async def _send(self, device: str, token: str, packed: bytes) -> None:
        async with self._send_locks.setdefault(device, asyncio.Lock()):  # the chunks of two messages must not mix
            await self._connection.send(task_subject(device), packed, reply=up_subject(device, "answer", token))

    async def _forget(self, device: str, token: str) -> None:
        with suppress(Exception):  # the device may also answer in vain
            client = await asyncio.wait_for(self._connection.client(), 0.01)
            await client.publish(task_subject(device), b"", reply=up_subject(device, "answer", token))

    async def _on_connect(self, client: Client) -> None:
        self._connected_at = time.monotonic()
        await client.publish(WHO)

    async def _on_message(self, client: Client, msg: Msg) -> None:
        _, _, device, channel, *rest = msg.subject.split(".")
        token = rest[0] if rest else ""
        if channel == "here":
            self._on_report(device, msg.data)
        elif channel == "say":
            self._take_chunk(device, channel, token, msg.data)
        elif channel == "answer" and msg.headers and msg.headers.get("Status") == "503":
            self._undelivered.add(token)  # the device may be on its way back: its next report decides
        elif channel == "answer" and not self._waits_for(device, token):
            self._answered(device, token, msg.data)  # too late: only counted
        elif channel == "answer":
            self._take_chunk(device, channel, token, msg.data)

    def _take_chunk(self, device: str, channel: str, token: str, chunk: bytes) -> None:
        token_under_way, assembler = self._incoming.get((device, channel), ("", ChunkAssembler()))
        if token_under_way != token:
            assembler = ChunkAssembler()
        self._incoming[device, channel] = token, assembler
        try:
            packed = assembler.add(chunk)
        except MessageError as error:
            self._count(device, REFUSED, len(chunk))
            log.warning("%s: %s", device, error)
            self._fail(token, error)
            return
        if packed is None:
            return
        del self._incoming[device, channel]
        if channel == "say":
            self._received(device, packed)
        else:
            self._answered(device, token, packed)

    def _on_report(self, device: str, data: bytes) -> None:
        self._count(device, "here", len(data))
        try:
            fields = json.loads(data[:1024])
            report = _LastReport(str(fields["process"]), int(fields["connection"]), time.monotonic())
        except (ValueError, KeyError, TypeError):
            return
        before = self._reports.get(device)
        if before is not None and before.process != report.process:
            self._left(device)  # a new process: whatever the old one held is lost
        self._reports[device] = report
        self._joined(device)
        self._resend_undelivered(device)

    def _resend_undelivered(self, device: str) -> None:
        self._undelivered &= self._requests.keys()
        for token in [token for token in self._undelivered if self._requests[token].device == device]:
            self._undelivered.remove(token)
            resending = asyncio.create_task(self._send(device, token, self._requests[token].packed))
            self._resending.add(resending)
            resending.add_done_callback(self._resending.discard)

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
        self._incoming = {key: value for key, value in self._incoming.items() if key[0] != device}
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
            await self._connection.client()
            hearing_since = max(hearing_since, self._connected_at)
            for device, report in list(self._reports.items()):
                if time.monotonic() - max(report.at, hearing_since) > GONE_SECONDS:
                    self._drop(device)
