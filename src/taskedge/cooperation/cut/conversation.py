"""The device's end of a link, for the thread that trains: it takes the cloud's requests one by one and answers each.

The link lives in an event loop, in a thread of its own, so that the connection stays alive while the other computes.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from taskedge.cooperation.protocol.message import Message
from taskedge.errors import TaskEdgeError

_POLL_SECONDS = 0.5


class CutEnded(TaskEdgeError):
    """The link has ended, so no request will come."""


class Conversation:
    """Requests of the cloud, and this device's answers.

    Args:
        patience: seconds without a request after which :meth:`receive` gives up; None: it waits for ever.
    """

    def __init__(self, patience: float | None = None) -> None:
        self._patience = patience
        self._requests: queue.SimpleQueue[tuple[Message, Future[Message]]] = queue.SimpleQueue()
        self._open: Future[Message] | None = None
        self._ended: BaseException | None = None

    async def handle(self, message: Message) -> Message:
        """Answer one message, when the thread that trains has done so: the handler of ``DeviceLink.serve``."""
        answer: Future[Message] = Future()
        self._requests.put((message, answer))
        return await asyncio.wrap_future(answer)

    def receive(self) -> Message:
        """Return the next request. The one before must be answered.

        Raises:
            CutEnded: The link has ended, or nothing came for too long.
        """
        assert self._open is None, "every request is answered before the next is taken"
        waited = 0.0
        while True:
            try:
                message, self._open = self._requests.get(timeout=_POLL_SECONDS)
                return message
            except queue.Empty:
                waited += _POLL_SECONDS
            if self._ended is not None:
                raise CutEnded(f"the link to the cloud has ended ({self._ended})") from self._ended
            if self._patience is not None and waited >= self._patience:
                raise CutEnded(f"the cloud asked nothing for {waited:.0f} s: is `taskedge cut serve` running?")

    def answer(self, message: Message) -> None:
        """Answer the request that was received."""
        assert self._open is not None, "there is a request to answer"
        open_request, self._open = self._open, None
        with suppress(InvalidStateError):  # nobody waits for it any more
            open_request.set_result(message)

    @property
    def has_request(self) -> bool:
        """Whether a request waits for its answer."""
        return self._open is not None

    def end(self, error: BaseException) -> None:
        """Note that no request will come."""
        self._ended = error


class LoopThread:
    """An event loop in a thread of its own, for links while this thread trains."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="taskedge-cut-link", daemon=True)
        self._tasks: list[Future[Any]] = []

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def start(self, work: Coroutine[Any, Any, Any], on_end: Callable[[BaseException], None] | None = None) -> None:
        """Run a coroutine until the block ends; ``on_end`` gets what ended it before."""
        task = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._tasks.append(task)
        if on_end is not None:
            task.add_done_callback(lambda done: on_end(_reason(done)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()

        async def settle() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(settle(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        if not self._loop.is_running():
            self._loop.close()


def _reason(done: Future[Any]) -> BaseException:
    if done.cancelled():
        return CutEnded("it was closed")
    return done.exception() or CutEnded("it has nothing left to do")
