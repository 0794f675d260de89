"""The number of threads: one where other work on the machine makes several slower, at the start of work and later."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from taskedge.profiling.arithmetic_speed import threads_that_pay
from taskedge.training.callbacks import Callback, TrainState

USUAL_STEPS = 8
"""Steps whose median is the usual duration."""
SLOW = 3.0
"""Times the usual duration from which a step is slow."""
SLOW_STEPS = 3
"""Slow steps in a row after which the threads are measured again."""
MAX_PAUSE = 512
"""Largest number of steps between measurements that change nothing; it doubles each time."""


def set_threads(threads: int | None, log: Callable[[str], object], advice: str = " (--threads decides)") -> None:
    """Set the number of threads; if none is given, that of torch, or one where that is faster on a busy machine.

    Args:
        threads: the number, if the user gives one.
        log: called with a line about one thread.
        advice: the end of that line.
    """
    if threads is not None:
        torch.set_num_threads(threads)
        return
    before = torch.get_num_threads()
    if threads_that_pay(before) < before:
        torch.set_num_threads(1)
        log(f"one thread instead of {before}: the machine is busy, and {before} are slower now{advice}")


class ThreadWatch(Callback):
    """Sets one thread if steps have become slow and as many threads take longer than one does.

    At its start a run measures the threads (:func:`set_threads`); this is for other work that begins
    later. Threads that share their cores with other work wait for each other in every product.

    Args:
        log: called with a line about the change.
        that_pay: see :func:`taskedge.profiling.arithmetic_speed.threads_that_pay`.
        clock: returns seconds.
    """

    def __init__(
        self,
        log: Callable[[str], object],
        that_pay: Callable[[int], int] = threads_that_pay,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._log, self._that_pay, self._clock = log, that_pay, clock
        self._usual: list[float] = []
        self._begin = 0.0
        self._outside = 0.0
        self._slow = 0
        self._next = 0
        self._pause = USUAL_STEPS

    def on_step_begin(self, state: TrainState) -> None:
        """Take the time."""
        self._begin, self._outside = self._clock(), state.outside_seconds

    def on_step_end(self, state: TrainState) -> None:
        """Compare the seconds of the step, without those of evaluations, with the usual ones."""
        seconds = self._clock() - self._begin - (state.outside_seconds - self._outside)
        if len(self._usual) < USUAL_STEPS:
            self._usual.append(seconds)
            return
        self._slow = self._slow + 1 if seconds > SLOW * statistics.median(self._usual) else 0
        threads = torch.get_num_threads()
        if self._slow < SLOW_STEPS or state.step < self._next or threads == 1:
            return
        begin = self._clock()
        pays = self._that_pay(threads)
        state.outside_seconds += self._clock() - begin
        self._next, self._pause = state.step + self._pause, min(2 * self._pause, MAX_PAUSE)
        if pays < threads:
            torch.set_num_threads(1)
            self._log(
                f"step {state.step}: one thread instead of {threads} from here on: steps became {SLOW:.0f} times as "
                f"slow, and {threads} threads are slower than one now (--threads decides)"
            )
