"""Work on what devices sent, off the event loop, so that heartbeats are heard while a thousand answers are read."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any, TypeVar, cast

SMALL_BYTES = 2**12
"""Size up to which reading a message takes less than handing it to a thread."""
_BATCH = 16
"""Results that are handed back at once: each return wakes the loop, which costs as much as reading a small answer."""

_Result = TypeVar("_Result")
_Item = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class ReaderThread:
    """Runs functions in one thread, in order.

    One thread suffices: readers hold the interpreter's lock most of the time, so more of them would compete for it.
    """

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget the thread and all work that waits, as a forked process must: it has no thread but its own."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="taskedge-reader")
        self._waiting: deque[_Item] = deque()
        self._lock = Lock()
        self._is_running = False

    async def run(self, work: Callable[[], _Result], num_bytes: int = SMALL_BYTES + 1) -> _Result:
        """Return ``work()``, or raise what it raises.

        Args:
            work: Reads, checks or sums what devices sent.
            num_bytes: Bytes that it works on; few are worked on at once, by the caller.
        """
        if num_bytes <= SMALL_BYTES:
            return work()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._waiting.append((loop, future, work))
            starts, self._is_running = not self._is_running, True
        if starts:
            self._thread.submit(self._work)
        return cast(_Result, await future)

    def _work(self) -> None:
        while True:
            done: list[tuple[_Item, Any, BaseException | None]] = []
            while len(done) < _BATCH:
                with self._lock:
                    item = self._waiting.popleft() if self._waiting else None
                    if item is None and not done:
                        self._is_running = False
                        return
                if item is None or (done and item[0] is not done[0][0][0]):
                    if item is not None:  # of another loop: with the next batch
                        with self._lock:
                            self._waiting.appendleft(item)
                    break
                result, error = None, None
                if not item[1].cancelled():
                    try:
                        result = item[2]()
                    except BaseException as raised:  # the caller gets it
                        error = raised
                done.append((item, result, error))
            with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
                done[0][0][0].call_soon_threadsafe(_hand_back, done)


def _hand_back(done: list[tuple[_Item, Any, BaseException | None]]) -> None:
    for (_, future, _), result, error in done:
        if future.done():  # cancelled meanwhile
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


READER = ReaderThread()
"""The reader of this process."""
os.register_at_fork(after_in_child=READER.start_anew)
