"""A lasting connection to the server: when it breaks, a new one is made, however long that takes.

nats-py can reconnect, too. But it gives up for good after some errors (a key that is refused for the moment, say), and
sends messages meant for the old connection over the new one. Here each connection is a fresh client, and a sender knows
whether the server has its message.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from taskedge.cooperation.protocol.chunking import CHUNK_BYTES, HEADER_BYTES, split_message
from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.errors import InputError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

PING_SECONDS = 2
HERE_SECONDS = 2.0
"""Seconds between a device's reports that it is there."""
MAX_WAITING_MESSAGES, MAX_WAITING_BYTES = 4096, 2 * MAX_MESSAGE_BYTES
"""Most that may wait unread of one subscription; more is dropped."""
_MAX_OUTSTANDING_PINGS = 15
"""A pong may wait behind a large message on a slow line. The server pings too, and notices a dead device sooner."""
_CONNECT_SECONDS = 10
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 2.0
_SEND_SECONDS = 60.0

log = logging.getLogger(__name__)


class Connection:
    """A lasting connection under the name in a bundle, with the same subscriptions each time it is made."""

    def __init__(
        self,
        bundle: Bundle,
        subscriptions: Mapping[str, Callable[[Client, Msg], Awaitable[None]]],
        on_connect: Callable[[Client], Awaitable[None]],
        on_overflow: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare a connection; :meth:`start` connects.

        Args:
            bundle: Name, keys and the server's address.
            subscriptions: Callbacks by subject, called with the client that the message came over.
            on_connect: Called with each new client, before anyone else may use it.
            on_overflow: Called with the subject of a message that was dropped, because more were waiting than
                ``MAX_WAITING_MESSAGES`` or ``MAX_WAITING_BYTES`` of one subscription.
        """
        _require_nats()
        self._bundle, self._on_connect, self._on_overflow = bundle, on_connect, on_overflow
        self._subscriptions = dict(subscriptions)
        self._client: Client | None = None
        self._subscribed: dict[str, Subscription] = {}
        self._changed = asyncio.Condition()
        self._subscribing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.trouble: str | None = None
        """Why there is no connection: the server's or the system's message."""

    def start(self) -> None:
        """Begin to connect, unless begun already."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._keep())

    async def client(self) -> Client:
        """Return the connected client, as soon as there is one."""
        self.start()
        async with self._changed:
            while self._client is None or self._client.is_closed:
                if self._task is None:
                    raise InputError("this link is closed")
                if self._task.done():
                    self._task.result()  # raises what ended it
                await self._changed.wait()
            return self._client

    @property
    def connected(self) -> Client | None:
        """The connected client; None while there is none."""
        return None if self._client is None or self._client.is_closed else self._client

    async def close(self) -> None:
        """End the connection for good."""
        task, self._task, self._closed = self._task, None, True
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def subscribe(self, subject: str, callback: Callable[[Client, Msg], Awaitable[None]]) -> None:
        """Subscribe to a further subject, on this connection and on those that follow."""
        self._subscriptions[subject] = callback
        await self._update_subscriptions()

    async def unsubscribe(self, subject: str) -> None:
        """End a subscription. What waits of it is dropped, and the server sends no more of it."""
        self._subscriptions.pop(subject, None)
        await self._update_subscriptions()

    async def send(self, subject: str, packed: bytes, reply: str = "") -> None:
        """Send a message in chunks and return when the server has it. If the connection breaks, the next one is used.

        Raises:
            MessageError: The message is too large.
        """
        while True:
            client = await self.client()
            try:
                for chunk in split_message(packed, min(CHUNK_BYTES, client.max_payload - HEADER_BYTES)):
                    await client.publish(subject, chunk, reply=reply)
                    await self.round_trip(client)  # one chunk at a time, so that pings pass in between
                return
            except _connection_errors() as error:
                self._note_trouble(error)
                await _close(client)

    async def round_trip(self, client: Client) -> None:
        """Return when the server has everything sent so far, and everything it sent before has arrived here.

        Raises:
            nats.errors.Error: The connection broke.
        """
        import nats.errors

        flush = asyncio.ensure_future(client.flush(timeout=_SEND_SECONDS))  # type: ignore[arg-type]
        try:
            while not flush.done():
                await asyncio.wait([flush], timeout=0.5)
                if client.is_closed and not flush.done():
                    break
            if client.is_closed:  # a flush returns without its round trip if nobody reads any more
                raise nats.errors.ConnectionClosedError
            flush.result()
        finally:
            flush.cancel()

    async def caught_up(self, client: Client) -> bool:
        """Wait until every message that came over this client is handled, and return whether it is still connected."""
        try:
            await self.round_trip(client)
        except _connection_errors():
            return False
        while any(subscription.pending_msgs for subscription in self._subscribed.values()):
            await asyncio.sleep(0)
        return not client.is_closed

    async def _keep(self) -> None:
        try:
            await self._keep_connecting()
        finally:
            await self._set_client(None)

    async def _keep_connecting(self) -> None:
        wait = _MIN_RETRY_SECONDS
        while not self._closed:  # a cancellation may be lost inside the client's own waiting
            lost = asyncio.Event()
            try:
                client = await self._connect(lost)
            except (*_connection_errors(), InputError) as error:  # type: ignore[misc]
                self._note_trouble(error)
                if self._closed:
                    return
                await asyncio.sleep(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, _MAX_RETRY_SECONDS)
                continue
            wait = _MIN_RETRY_SECONDS
            self.trouble = None
            try:
                await self._set_client(client)
                await self._update_subscriptions()  # those that changed meanwhile
                # an error while it closes may lose the event
                while not (lost.is_set() or client.is_closed or self._closed):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(lost.wait(), 0.5)
            finally:
                await self._set_client(None)
                await _close(client)
            self.trouble = self.trouble or "the connection was lost"

    async def _connect(self, lost: asyncio.Event) -> Client:
        import nats.errors

        async def on_error(error: Exception) -> None:
            if isinstance(error, nats.errors.SlowConsumerError):
                self._on_overflow(error.subject)
            else:
                self._note_trouble(error)

        async def on_closed() -> None:
            lost.set()

        client = _client()
        try:
            await client.connect(
                self._bundle.server,
                name=self._bundle.name,
                tls=self._bundle.tls(),  # read each time: the bundle may have been renewed
                tls_handshake_first=True,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=_MAX_OUTSTANDING_PINGS,
                error_cb=on_error,
                closed_cb=on_closed,
            )
            self._subscribed.clear()
            await self._subscribe(client)
            await self._on_connect(client)
            await self.round_trip(client)
        except BaseException:
            await _close(client)
            raise
        return client

    async def _update_subscriptions(self) -> None:
        """Subscribe to what is missing on the present connection, and unsubscribe from what is no longer wanted."""
        client = self._client
        if client is not None:
            with suppress(*_connection_errors()):  # else the next connection does
                await self._subscribe(client)

    async def _subscribe(self, client: Client) -> None:
        async with self._subscribing:
            for subject in self._subscribed.keys() - self._subscriptions.keys():
                await self._subscribed.pop(subject).unsubscribe()
            for subject, callback in list(self._subscriptions.items()):
                if subject not in self._subscribed:
                    self._subscribed[subject] = await client.subscribe(
                        subject,
                        cb=partial(callback, client),
                        pending_msgs_limit=MAX_WAITING_MESSAGES,
                        pending_bytes_limit=MAX_WAITING_BYTES,
                    )

    async def _set_client(self, client: Client | None) -> None:
        async with self._changed:
            self._client = client
            self._changed.notify_all()

    def _note_trouble(self, error: BaseException) -> None:
        trouble = f"{self._bundle.server}: {str(error) or type(error).__name__}"
        if trouble != self.trouble:
            log.info("%s at %s", self._bundle.name, trouble)
        self.trouble = trouble


def _client() -> Client:
    """Return a client that outlives a round trip for which nobody waits any more.

    nats-py sets the result of the oldest waiting future at each pong. If that future was cancelled, this raises inside
    the task that reads the connection: the client hears nothing any more, and only its missing pongs tell so, half a
    minute later. A device that makes a request be given up at the right moment would make the coordinator deaf.
    """
    from nats.aio.client import Client

    class RobustClient(Client):
        async def _process_pong(self) -> None:
            if self._pongs and self._pongs[0].done():
                self._pongs[0] = asyncio.get_running_loop().create_future()
            await super()._process_pong()

    return RobustClient()


async def _close(client: Client) -> None:
    with suppress(Exception):
        await asyncio.wait_for(client.close(), 1)


def _connection_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of a connection that cannot be made or breaks. All are worth another try."""
    import nats.errors

    return (OSError, TimeoutError, nats.errors.Error)


def _require_nats() -> None:
    try:
        import nats  # noqa: F401
    except ImportError:
        raise InputError("cooperating needs the package 'nats-py': pip install 'taskedge[device]'") from None
    # asyncio logs a warning about nats-py's TLS streams each time the server closes one.
    logging.getLogger("asyncio").addFilter(_drop_eof_warning)


def _drop_eof_warning(record: logging.LogRecord) -> bool:
    return "returning true from eof_received()" not in record.getMessage()
