"""When a message may have arrived at the earliest, in a process that can be frozen at any moment.

A task says how long it may take, not until when: clocks of devices differ. A frozen process (stopped, or on a machine
that slept) finds the task when it thaws and would count from then. So a ticker notes when the process last ran: what
is handled right after a gap may have arrived at its beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK = 0.2
GAP = 5 * TICK
"""A tick that is so late means that the process did not run."""
AFTER = 1.0
"""Seconds after a gap in which what is handled may still have arrived in it."""


class Arrival:
    """Run :meth:`tick` beside what handles messages.

    ``now`` must go on while the process is stopped, as ``time.monotonic`` does.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._gap: tuple[float, float] | None = None

    async def tick(self) -> None:
        """Notes that the process runs, until cancelled."""
        while True:
            self.note()
            await asyncio.sleep(TICK)

    def note(self) -> None:
        """One tick."""
        now = self._now()
        if now - self._last > GAP:
            self._gap = (self._last, now)
        self._last = now

    def earliest(self) -> float:
        """For a message that is handled now: the earliest moment at which it may have come."""
        self.note()
        if self._gap is not None and self._last - self._gap[1] <= AFTER:
            return self._gap[0]
        return self._last
