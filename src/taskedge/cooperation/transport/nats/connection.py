"""A connection to the server that is kept: when it breaks, a new one is made, however long that takes.

nats-py can reconnect by itself, but gives up for good after some errors (a key that is refused for the moment, say),
and sends what was meant for the old connection over the new one. Here each connection is a fresh client, and who
sends knows whether the server has it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from taskedge.cooperation.fleet.bundle import Bundle
from taskedge.cooperation.protocol.chunking import HEADER_BYTES, SHARE, parts
from taskedge.errors import InputError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

PING_SECONDS = 2
_LOST_PINGS = 15
"""A pong may wait behind a large message on a slow line: the server, which pings too, notices a dead device sooner."""
_CONNECT_SECONDS = 10
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
_SEND_SECONDS = 60.0

log = logging.getLogger(__name__)


class Connection:
    """Keeps connected as ``bundle``'s name, with the same subscriptions each time."""

    def __init__(
        self,
        bundle: Bundle,
        subscriptions: Mapping[str, Callable[[Client, Msg], Awaitable[None]]],
        arrived: Callable[[Client], Awaitable[None]],
    ) -> None:
        """Does not connect yet: ``start`` does.

        Args:
            subscriptions: what to call by subject, with the connection that the message came over.
            arrived: called with each new connection, before anyone else may use it.
        """
        _need()
        self._bundle, self._subscriptions, self._arrived = bundle, subscriptions, arrived
        self._client: Client | None = None
        self._subscribed: list[Subscription] = []
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.trouble: str | None = None
        """Why there is no connection, in the server's or the system's words."""

    def start(self) -> None:
        """Begins to connect, unless it has."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._keep())

    async def client(self) -> Client:
        """The connection, as soon as there is one."""
        self.start()
        async with self._changed:
            while self._client is None or self._client.is_closed:
                if self._task is None:
                    raise InputError("this link is closed")
                if self._task.done():
                    self._task.result()  # raises what ended it
                await self._changed.wait()
            return self._client

    async def close(self) -> None:
        """Ends it."""
        task, self._task, self._closed = self._task, None, True
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def send(self, subject: str, packed: bytes, reply: str = "") -> None:
        """Sends a message in parts, and returns when the server has it; over the next connection if this one breaks.

        Raises:
            MessageError: it is too large.
        """
        while True:
            client = await self.client()
            try:
                for part in parts(packed, min(SHARE, client.max_payload - HEADER_BYTES)):
                    await client.publish(subject, part, reply=reply)
                    await self.round_trip(client)  # one part at a time, so that pings pass in between
                return
            except _broken() as error:
                self._note(error)
                await _end(client)

    async def round_trip(self, client: Client) -> None:
        """Returns when the server has all that was sent, and we have all that it sent before.

        Raises:
            one of nats-py's errors: the connection broke.
        """
        import nats.errors

        flush = asyncio.ensure_future(client.flush(timeout=_SEND_SECONDS))  # type: ignore[arg-type]
        try:
            while not flush.done():
                await asyncio.wait([flush], timeout=0.5)
                if client.is_closed and not flush.done():
                    break
            if client.is_closed:  # a flush returns without its round trip where nobody reads any more
                raise nats.errors.ConnectionClosedError
            flush.result()
        finally:
            flush.cancel()

    async def caught_up(self, client: Client) -> bool:
        """Whether this connection still holds; all that came over it so far has then been dealt with."""
        try:
            await self.round_trip(client)
        except _broken():
            return False
        while any(subscription.pending_msgs for subscription in self._subscribed):
            await asyncio.sleep(0)
        return not client.is_closed

    async def _keep(self) -> None:
        try:
            await self._keep_on()
        finally:
            await self._change(None)

    async def _keep_on(self) -> None:
        wait = _FIRST_WAIT
        while not self._closed:  # a cancellation may be lost inside the client's own waiting
            lost = asyncio.Event()
            try:
                client = await self._connect(lost)
            except (*_broken(), InputError) as error:  # type: ignore[misc]
                self._note(error)
                if self._closed:
                    return
                await asyncio.sleep(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            wait = _FIRST_WAIT
            self.trouble = None
            try:
                await self._change(client)
                # an error while it closes may lose the event
                while not (lost.is_set() or client.is_closed or self._closed):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(lost.wait(), 0.5)
            finally:
                await self._change(None)
                await _end(client)
            self.trouble = self.trouble or "the connection was lost"

    async def _connect(self, lost: asyncio.Event) -> Client:
        from nats.aio.client import Client

        async def error(trouble: Exception) -> None:
            self._note(trouble)

        async def closed() -> None:
            lost.set()

        client = Client()
        try:
            await client.connect(
                self._bundle.server,
                name=self._bundle.name,
                tls=self._bundle.tls(),  # anew each time: the bundle may have been renewed
                tls_handshake_first=True,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=_LOST_PINGS,
                error_cb=error,
                closed_cb=closed,
            )
            self._subscribed.clear()
            for subject, called in self._subscriptions.items():
                self._subscribed.append(await client.subscribe(subject, cb=partial(called, client)))
            await self._arrived(client)
            await self.round_trip(client)
        except BaseException:
            await _end(client)
            raise
        return client

    async def _change(self, client: Client | None) -> None:
        async with self._changed:
            self._client = client
            self._changed.notify_all()

    def _note(self, error: BaseException) -> None:
        said = f"{self._bundle.server}: {str(error) or type(error).__name__}"
        if said != self.trouble:
            log.info("%s at %s", self._bundle.name, said)
        self.trouble = said


async def _end(client: Client) -> None:
    with suppress(Exception):
        await asyncio.wait_for(client.close(), 1)


def _broken() -> tuple[type[BaseException], ...]:
    """What may be raised where a connection cannot be made or breaks: all worth another try."""
    import nats.errors

    return (OSError, TimeoutError, nats.errors.Error)


def _need() -> None:
    try:
        import nats  # noqa: F401
    except ImportError:
        raise InputError("cooperating needs the package 'nats-py': pip install 'taskedge[device]'") from None
    # nats-py makes its TLS streams in a way that asyncio remarks on each time the server closes one.
    logging.getLogger("asyncio").addFilter(_no_remark)


def _no_remark(record: logging.LogRecord) -> bool:
    return "returning true from eof_received()" not in record.getMessage()
