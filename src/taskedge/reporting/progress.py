"""Progress of a long task on standard error: a line that changes on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from taskedge.reporting.tables import duration

SECONDS_BETWEEN_LINES = 10.0
"""Least seconds from one line in a log file to the next, and from the start to the first."""


class ProgressDisplay(Protocol):
    """A display of the units done; ``tqdm`` is one."""

    def update(self, n: int = 1) -> object:
        """Count ``n`` more units."""

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Show values after the count from the next line on."""

    def close(self) -> None:
        """Show the final count."""


class ProgressLines:
    """Whole lines at a bounded rate, for a log file or a pipe. A task that ends before the first line shows none.

    Args:
        total: number of units of the whole task.
        description: the first word of each line.
        unit: noun of a unit, in the singular.
        log: receives the lines.
        initial: units that were done before.
        clock: returns seconds.
    """

    def __init__(
        self,
        total: int,
        description: str,
        unit: str,
        log: Callable[[str], object],
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._done, self._initial = total, initial, initial
        self._description, self._unit = description, unit
        self._log, self._clock = log, clock
        self._start = self._last = clock()
        self._shown: int | None = None
        self._values: dict[str, Any] = {}

    def update(self, n: int = 1) -> None:
        """Count ``n`` more units; show a line if the last one is long enough ago."""
        self._done += n
        if self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self._show()

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Show values at the end of the next lines. ``refresh`` has no effect; it is an argument of tqdm."""
        self._values = values

    def close(self) -> None:
        """Show the final count if a line was shown before."""
        if self._shown is not None and self._shown != self._done:
            self._show()

    def _show(self) -> None:
        self._last, self._shown = self._clock(), self._done
        elapsed = self._last - self._start
        parts = [f"{self._done} of {self._total} {self._unit}{'s' * (self._total != 1)}", duration(elapsed)]
        if self._initial < self._done < self._total:
            left = elapsed / (self._done - self._initial) * (self._total - self._done)
            parts.append(f"about {duration(left)} left")
        parts += [f"{name} {value}" for name, value in self._values.items()]
        self._log(f"{self._description}: {', '.join(parts)}")


def show_progress(
    total: int, description: str, unit: str, log: Callable[[str], object], initial: int = 0
) -> ProgressDisplay:
    """Return a display on standard error.

    Args:
        total: number of units of the whole task.
        description: the first word of the display.
        unit: noun of a unit, in the singular.
        log: receives the lines if standard error is no terminal.
        initial: units that were done before.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return ProgressLines(total, description, unit, log, initial)
    from tqdm.auto import tqdm

    bar: ProgressDisplay = tqdm(total=total, initial=initial, desc=description, unit=unit, file=sys.stderr)
    return bar
