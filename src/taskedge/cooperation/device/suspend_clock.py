"""Find the earliest time at which a message may have arrived, in a process that can be suspended at any moment.

A task gives the seconds that it may take, not a deadline, since the clocks of devices differ. A process that was
suspended (stopped, or on a machine that slept) finds the task when it resumes, and would count from then. So a ticker
records when the process last ran: a message that is handled right after a gap may have arrived at the gap's beginning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_SECONDS = 0.2
GAP_SECONDS = 5 * TICK_SECONDS
"""Time between two ticks above which the process was suspended."""
AFTER_GAP_SECONDS = 1.0
"""Time after a gap in which a message that is handled may still have arrived in the gap."""


class SuspendAwareClock:
    """A clock that notices suspensions. Run :meth:`run` beside the code that handles messages.

    Args:
        now: Returns seconds. It must advance while the process is suspended, as ``time.monotonic`` does.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._gap: tuple[float, float] | None = None

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """Record that the process runs now."""
        now = self._now()
        if now - self._last > GAP_SECONDS:
            self._gap = (self._last, now)
        self._last = now

    def earliest_arrival(self) -> float:
        """Return the earliest time at which a message that is handled now may have arrived."""
        self.tick()
        if self._gap is not None and self._last - self._gap[1] <= AFTER_GAP_SECONDS:
            return self._gap[0]
        return self._last
