"""A device's link over NATS with mutual TLS. Subjects and permissions are in ``server_config``."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskedge.cooperation.protocol.chunking import ChunkAssembler
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.links import Handler
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.connection import HERE_SECONDS, Connection
from taskedge.cooperation.transport.nats.server_config import WHO, task_subject, up_subject

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

_LAST_ANSWER_SECONDS = 2.0
"""For an answer under way to arrive when the link closes."""
_MAX_REMEMBERED = 64
"""Tasks that a device recognizes if they are sent again."""

log = logging.getLogger(__name__)


class NatsDeviceLink:
    """A device's end. It connects at the first ``serve``, and reconnects whenever it must."""

    def __init__(self, bundle: Path) -> None:
        """Read the bundle, without connecting.

        Raises:
            InputError: The bundle cannot be used.
        """
        opened = Bundle.open(bundle)
        opened.tls()  # a bundle that cannot be used fails now, instead of being tried for ever
        self.name = opened.name
        self._process = secrets.token_hex(8)
        self._tasks: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._task_clients: dict[str, Client] = {}
        """The connection that a task came over, by the subject of its answer."""
        self._forgotten: set[str] = set()
        self._incoming: tuple[str, ChunkAssembler] = ("", ChunkAssembler())
        self._send_lock = asyncio.Lock()
        subscriptions = {task_subject(self.name): self._on_task, WHO: self._on_who}
        self._connection = Connection(opened, subscriptions, self._report)
        self._answering: asyncio.Task[None] | None = None
        self._heartbeat: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Why there is no connection now."""
        return self._connection.trouble

    async def serve(self, handler: Handler) -> None:
        """See ``DeviceLink.serve``. Run blocking work in a thread, or the device counts as gone."""
        self._start()
        while True:
            reply, packed = await self._tasks.get()
            if not await self._is_wanted(reply):
                continue
            try:
                message = Message.unpack(packed)
            except MessageError as error:
                log.warning("a task that is no message: %s", error)
                continue
            answer = (await handler(message)).pack()
            self._forgotten.discard(reply)
            self._answering = asyncio.create_task(self._send(reply, answer))
            await asyncio.shield(self._answering)  # a finished answer still leaves when this is canceled

    async def close(self) -> None:
        """See ``DeviceLink.close``. An answer under way gets a moment to arrive."""
        if self._answering is not None:
            await asyncio.wait([self._answering], timeout=_LAST_ANSWER_SECONDS)
            self._answering.cancel()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        await self._connection.close()

    def _start(self) -> None:
        self._connection.start()
        if self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._report_regularly())

    async def _send(self, subject: str, packed: bytes) -> None:
        async with self._send_lock:  # the chunks of two messages must not mix
            await self._connection.send(subject, packed)

    async def _is_wanted(self, reply: str) -> bool:
        """Return whether the coordinator still waits for a task's answer.

        A process that was frozen reads its old tasks first, and only behind them that they are forgotten or that the
        connection ended long ago. So everything up to now is read before a task begins. What is read then may be so
        many tasks that this one is no longer remembered, nor that it is forgotten.
        """
        client = self._task_clients.get(reply)
        caught_up = client is not None and await self._connection.caught_up(client)
        wanted = caught_up and reply in self._task_clients and reply not in self._forgotten
        self._forgotten.discard(reply)
        if not wanted:
            self._task_clients.pop(reply, None)  # so that it can be sent again
        return wanted

    async def _report(self, client: Client) -> None:
        fields = {"process": self._process, "connection": client.client_id}
        await client.publish(up_subject(self.name, "here"), json.dumps(fields).encode())

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(HERE_SECONDS)
            client = await self._connection.client()
            with suppress(Exception):  # a broken connection is replaced by ``Connection``
                await self._report(client)

    async def _on_who(self, client: Client, msg: Msg) -> None:
        await self._report(client)

    async def _on_task(self, client: Client, msg: Msg) -> None:
        reply = msg.reply
        if not msg.data:  # the coordinator has forgotten the task
            if reply in self._task_clients:
                self._forgotten.add(reply)
            return
        reply_under_way, assembler = self._incoming
        if reply_under_way != reply:
            assembler = ChunkAssembler()
        self._incoming = reply, assembler
        try:
            packed = assembler.add(msg.data)
        except MessageError as error:
            log.warning("a task that cannot be read: %s", error)
            return
        if packed is None:
            return
        self._incoming = "", ChunkAssembler()
        is_repeat = reply in self._task_clients  # sent again because the connection broke
        self._task_clients[reply] = client
        if not is_repeat:
            self._tasks.put_nowait((reply, packed))
        while len(self._task_clients) > _MAX_REMEMBERED:
            oldest = next(iter(self._task_clients))
            del self._task_clients[oldest]
            self._forgotten.discard(oldest)
