"""Budgets of what one device may send: frames, bytes and joins per second, so that one device cannot stall the others.

A request adds the frames and bytes of the largest answer that it can have to its device's budget, so an honest device
never exceeds it, however much it is asked. What honest devices leave unused does not add up: a budget holds the largest
answers to two requests beside the burst. What a device sends unasked are heartbeats, two seconds apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FRAMES_BURST, FRAMES_PER_SECOND = 200, 20.0
BYTES_BURST, BYTES_PER_SECOND = 4 * 2**20, 64.0 * 2**10
JOINS_BURST, JOINS_PER_SECOND = 10, 0.1
"""A device that comes and goes more often stays away: each time costs a ``hello``, and lines in the log."""
MIN_PENALTY_SECONDS, MAX_PENALTY_SECONDS = 10.0, 600.0
"""How long a device that floods is not listened to: at first, and at most. Each time doubles it."""
MAX_CREDITS = 2
"""Largest answers that a budget holds: one may still be on its way when the next is asked for."""

Clock = Callable[[], float]


class TokenBucket:
    """A budget that fills up with time.

    Args:
        burst: Largest amount that it holds; it begins full.
        per_second: Amount that it gains per second.
        clock: Seconds.
    """

    def __init__(self, burst: float, per_second: float, clock: Clock = time.monotonic) -> None:
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._left, self._at = float(burst), clock()
        self._largest_credit = 0.0

    def take(self, amount: float = 1.0) -> bool:
        """Take an amount, and return whether the budget held that much."""
        now = self._clock()
        if self._left < self._burst:  # else it holds credit for an answer, which time does not take away
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def credit(self, amount: float) -> None:
        """Add an amount that may be taken beside the burst, up to ``MAX_CREDITS`` times the largest one so far."""
        self._largest_credit = max(self._largest_credit, amount)
        self._left = min(self._left + amount, self._burst + MAX_CREDITS * self._largest_credit)


@dataclass(frozen=True)
class Penalty:
    """A device is not listened to until a moment."""

    until: float
    """By the guard's clock."""
    seconds: float
    why: str


class FloodGuard:
    """The budget of one device, and its penalty while it has exceeded it.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._num_penalties = 0
        self.penalty: Penalty | None = None
        """The present one, from :meth:`punish` until :meth:`is_over`."""
        self.joins = TokenBucket(JOINS_BURST, JOINS_PER_SECOND, clock)
        self._refill()

    def expect(self, num_frames: int, num_bytes: int) -> None:
        """Add the largest answer to a request to the budget."""
        self._frames.credit(num_frames)
        self._bytes.credit(num_bytes)

    def excess(self, num_bytes: int) -> str:
        """Take one frame from the budget, and return which budget it exceeds; empty if it exceeds none."""
        if not self._frames.take():
            return f"more than {FRAMES_BURST} frames at once or {FRAMES_PER_SECOND:g} a second, beside answers"
        if not self._bytes.take(num_bytes):
            return f"more than {BYTES_BURST:,} bytes at once or {BYTES_PER_SECOND:,.0f} a second, beside answers"
        return ""

    def punish(self, why: str) -> Penalty:
        """Begin a penalty, twice as long as the last one."""
        seconds = min(MAX_PENALTY_SECONDS, MIN_PENALTY_SECONDS * 2.0**self._num_penalties)
        self._num_penalties += 1
        self.penalty = Penalty(self._clock() + seconds, seconds, why)
        return self.penalty

    def is_over(self) -> bool:
        """Return whether a penalty has just ended. The device then has its full budget again."""
        if self.penalty is None or self._clock() < self.penalty.until:
            return False
        self.penalty = None
        self._refill()
        return True

    def _refill(self) -> None:
        self._frames = TokenBucket(FRAMES_BURST, FRAMES_PER_SECOND, self._clock)
        self._bytes = TokenBucket(BYTES_BURST, BYTES_PER_SECOND, self._clock)
