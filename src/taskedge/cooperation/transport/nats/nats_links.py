"""The links over NATS with mutual TLS; subjects and permissions are in nats_config.

Who is there: devices say so every two seconds and when they arrive; the server says at once when a connection ends. A
line that is cut says nothing, so a device unheard of for six seconds is gone, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskedge.cooperation.fleet.bundle import Bundle
from taskedge.cooperation.protocol.chunking import Assembly
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.nats.connection import Connection
from taskedge.cooperation.transport.nats.server_config import GONE, WHO, task_subject, up_subject
from taskedge.cooperation.transport.request_reply import REFUSED, Switchboard
from taskedge.errors import InputError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

HERE_SECONDS = 2.0
GONE_SECONDS = 6.0
_LAST_SECONDS = 2.0
_REMEMBERED = 64
"""Tasks that a device knows again."""

log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """What a device last said about itself. It could lie only about itself."""

    process: str
    connection: int
    """The server's number for it."""
    at: float
    """``time.monotonic()``."""


class NatsCoordinatorLink(Switchboard):
    """The coordinator's end."""

    def __init__(self, bundle: Path) -> None:
        """Does not connect yet: ``connect`` does, and is the way to make one."""
        super().__init__()
        opened = Bundle.open(bundle)
        self._seen: dict[str, _Seen] = {}
        self._parts: dict[tuple[str, str], tuple[str, Assembly]] = {}  # by device and channel: the one under way
        self._turns: dict[str, asyncio.Lock] = {}
        self._unheard: set[str] = set()  # questions that nobody was there to hear
        self._sending: set[asyncio.Task[None]] = set()
        self._connection = Connection(opened, {up_subject("*", ">"): self._up, GONE: self._gone}, self._arrived)
        self._connected_at = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, bundle: Path, seconds: float = 10.0) -> NatsCoordinatorLink:
        """Connects with the coordinator's bundle; from then on it stays connected by itself.

        Raises:
            InputError: the bundle cannot be used, or there is no server within ``seconds``.
        """
        link = cls(bundle)
        try:
            await asyncio.wait_for(link._connection.client(), seconds)
        except TimeoutError:
            await link.close()
            raise InputError(f"no connection to the server ({link._connection.trouble}): is it running?") from None
        link._watch = asyncio.create_task(link._watching())
        return link

    async def close(self) -> None:
        """See ``CoordinatorLink.close``."""
        if self._watch is not None:
            self._watch.cancel()
        for sending in self._sending:
            sending.cancel()
        await self._connection.close()

    async def _send(self, device: str, token: str, packed: bytes) -> None:
        async with self._turns.setdefault(device, asyncio.Lock()):  # the parts of two messages must not mix
            await self._connection.send(task_subject(device), packed, reply=up_subject(device, "answer", token))

    async def _forget(self, device: str, token: str) -> None:
        with suppress(Exception):  # a courtesy
            client = await asyncio.wait_for(self._connection.client(), 0.01)
            await client.publish(task_subject(device), b"", reply=up_subject(device, "answer", token))

    async def _arrived(self, client: Client) -> None:
        self._connected_at = time.monotonic()
        await client.publish(WHO)

    async def _up(self, client: Client, msg: Msg) -> None:
        _, _, device, channel, *rest = msg.subject.split(".")
        token = rest[0] if rest else ""
        if channel == "here":
            self._here(device, msg.data)
        elif channel == "say":
            self._take(device, channel, token, msg.data)
        elif channel == "answer" and msg.headers and msg.headers.get("Status") == "503":
            self._unheard.add(token)  # it may be on its way back: what is heard of it next decides
        elif channel == "answer" and not self._waits_for(device, token):
            self._answered(device, token, msg.data)  # too late: only counted
        elif channel == "answer":
            self._take(device, channel, token, msg.data)

    def _take(self, device: str, channel: str, token: str, part: bytes) -> None:
        under_way, assembly = self._parts.get((device, channel), ("", Assembly()))
        if under_way != token:
            assembly = Assembly()
        self._parts[device, channel] = token, assembly
        try:
            packed = assembly.add(part)
        except MessageError as error:
            self._count(device, REFUSED, len(part))
            log.warning("%s: %s", device, error)
            self._failed(token, error)
            return
        if packed is None:
            return
        del self._parts[device, channel]
        if channel == "say":
            self._said(device, packed)
        else:
            self._answered(device, token, packed)

    def _here(self, device: str, data: bytes) -> None:
        self._count(device, "here", len(data))
        try:
            facts = json.loads(data[:1024])
            now = _Seen(str(facts["process"]), int(facts["connection"]), time.monotonic())
        except (ValueError, KeyError, TypeError):
            return
        before = self._seen.get(device)
        if before is not None and before.process != now.process:
            self._left(device)  # it was started anew: what it knew is gone
        self._seen[device] = now
        self._joined(device)
        self._send_again(device)

    def _send_again(self, device: str) -> None:
        self._unheard &= self._asked.keys()
        for token in [token for token in self._unheard if self._asked[token].device == device]:
            self._unheard.remove(token)
            sending = asyncio.create_task(self._send(device, token, self._asked[token].packed))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _gone(self, client: Client, msg: Msg) -> None:
        event = json.loads(msg.data)
        # A server that stops says so of everyone: devices come back with it, and keep working meanwhile.
        if event.get("reason") == "Server Shutdown":
            return
        name = event["client"]["user"].split(",")[0].removeprefix("CN=")
        seen = self._seen.get(name)
        if seen is not None and seen.connection == event["client"]["id"]:  # and not one that it has replaced
            self._drop(name)

    def _drop(self, device: str) -> None:
        del self._seen[device]
        self._parts = {key: parts for key, parts in self._parts.items() if key[0] != device}
        self._left(device)

    async def _watching(self) -> None:
        """Drops those unheard of for too long, counted while we ourselves could hear."""
        hearing_since = awake = time.monotonic()
        while True:
            await asyncio.sleep(HERE_SECONDS / 4)
            now = time.monotonic()
            if now - awake > HERE_SECONDS:  # this process stood still
                hearing_since = now
            awake = now
            await self._connection.client()
            hearing_since = max(hearing_since, self._connected_at)
            for device, seen in list(self._seen.items()):
                if time.monotonic() - max(seen.at, hearing_since) > GONE_SECONDS:
                    self._drop(device)


class NatsDeviceLink:
    """A device's end. It connects at the first ``say`` or ``serve``, and again whenever it has to."""

    def __init__(self, bundle: Path) -> None:
        """Reads the bundle.

        Raises:
            InputError: it cannot be used.
        """
        opened = Bundle.open(bundle)
        opened.tls()  # a bundle that cannot be used is told now, and not tried for ever
        self.name = opened.name
        self._process = secrets.token_hex(8)
        self._tasks: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._came: dict[str, Client] = {}  # by the answer's subject: the connection that a task came over
        self._forgotten: set[str] = set()
        self._parts: tuple[str, Assembly] = ("", Assembly())
        self._turn = asyncio.Lock()
        subscriptions = {task_subject(self.name): self._task, WHO: self._who}
        self._connection = Connection(opened, subscriptions, self._here)
        self._answering: asyncio.Task[None] | None = None
        self._beat: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Why there is no connection now."""
        return self._connection.trouble

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        """See ``DeviceLink.serve``. Work that blocks belongs into a thread, or the device is taken for gone."""
        self._start()
        while True:
            reply, packed = await self._tasks.get()
            if not await self._wanted(reply):
                continue
            try:
                message = Message.unpack(packed)
            except MessageError as error:
                log.warning("a task that is no message: %s", error)
                continue
            answered = (await answer(message)).pack()
            self._forgotten.discard(reply)
            self._answering = asyncio.create_task(self._say(reply, answered))
            await asyncio.shield(self._answering)  # what was worked out still leaves when this is cancelled

    async def say(self, message: Message) -> None:
        """See ``DeviceLink.say``; returns when the server has it."""
        self._start()
        await self._say(up_subject(self.name, "say", secrets.token_hex(8)), message.pack())

    async def close(self) -> None:
        """See ``DeviceLink.close``; an answer that is on its way gets a moment to arrive."""
        if self._answering is not None:
            await asyncio.wait([self._answering], timeout=_LAST_SECONDS)
            self._answering.cancel()
        if self._beat is not None:
            self._beat.cancel()
        await self._connection.close()

    def _start(self) -> None:
        self._connection.start()
        if self._beat is None:
            self._beat = asyncio.create_task(self._beating())

    async def _say(self, subject: str, packed: bytes) -> None:
        async with self._turn:  # the parts of two messages must not mix
            await self._connection.send(subject, packed)

    async def _wanted(self, reply: str) -> bool:
        """Whether a task is still waited for.

        A process that was frozen finds its old tasks first, and only behind them that they are forgotten or that the
        connection has long ended: so everything up to now is read before anything is begun.
        """
        client = self._came.get(reply)
        wanted = client is not None and await self._connection.caught_up(client) and reply not in self._forgotten
        self._forgotten.discard(reply)
        if not wanted:
            self._came.pop(reply, None)  # so that it can be sent again
        return wanted

    async def _here(self, client: Client) -> None:
        facts = {"process": self._process, "connection": client.client_id}
        await client.publish(up_subject(self.name, "here"), json.dumps(facts).encode())

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(HERE_SECONDS)
            client = await self._connection.client()
            with suppress(Exception):  # the connection is made anew where it broke
                await self._here(client)

    async def _who(self, client: Client, msg: Msg) -> None:
        await self._here(client)

    async def _task(self, client: Client, msg: Msg) -> None:
        reply = msg.reply
        if not msg.data:  # it need not be answered any more
            if reply in self._came:
                self._forgotten.add(reply)
            return
        under_way, assembly = self._parts
        if under_way != reply:
            assembly = Assembly()
        self._parts = reply, assembly
        try:
            packed = assembly.add(msg.data)
        except MessageError as error:
            log.warning("a task that cannot be read: %s", error)
            return
        if packed is None:
            return
        self._parts = "", Assembly()
        again = reply in self._came  # sent anew because the connection broke under it
        self._came[reply] = client
        if not again:
            self._tasks.put_nowait((reply, packed))
        while len(self._came) > _REMEMBERED:
            oldest = next(iter(self._came))
            del self._came[oldest]
            self._forgotten.discard(oldest)
