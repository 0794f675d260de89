"""What a way to train costs: bytes by kind, and seconds. Plain figures, from a few measured points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from taskedge.profiling.line_fit import rising_line


@dataclass(frozen=True)
class Line:
    """A cost over the rows that pass at once: what was measured where it was, else the line through the last two."""

    points: tuple[tuple[float, float], ...]
    """(rows, cost), rows rising."""

    def at(self, rows: float) -> float:
        """The cost at so many rows."""
        measured = dict(self.points)
        if rows in measured:
            return measured[rows]
        last = self.points[-2:]
        costs = [max(cost, 1e-9) for _, cost in last]  # the fit is relative
        work = np.array([*(at for at, _ in last), rows])
        return float(rising_line(work, range(1, len(last) + 1), costs)[-1])


@dataclass(frozen=True)
class Memory:
    """The peak of the whole process, bytes by kind. ``above_idle`` leaves out what is there once the base is loaded."""

    process: int
    """Python, its libraries and the data as it was read, before the base is loaded."""
    base: int
    """The base's weights, all of them read."""
    runtime: int
    """What is there besides: libraries' own buffers and code, encoded rows, a compiler, what malloc holds."""
    entries: int
    """What trains beside the head, with its places, gradients and optimiser."""
    head: int
    """Gradients and optimiser of what trains whole; and its copies, where the base is of lower precision."""
    saved: int
    """Activations that are kept for the backward pass, and the inputs of a step."""
    temporary: int
    """What comes and goes within the step, or within another part of the run that needs more than the step."""
    part: str = "step"
    """The part of the run that has the peak."""

    @property
    def peak(self) -> int:
        """Bytes: the largest resident set of the process."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "part")

    @property
    def above_idle(self) -> int:
        """Bytes above those of the process when it has loaded the base and does nothing."""
        return self.peak - self.process - self.base


@dataclass(frozen=True)
class Cost:
    """Of one way: see :class:`Memory`; seconds are of a step, on the wall's clock and of the processor."""

    way: str
    changes: Mapping[str, Any]
    exact: bool
    allowed: bool
    memory: Memory
    seconds: float
    cpu_seconds: float
    steps: int
    threads: int

    @property
    def work(self) -> float:
        """Seconds to compare ways by: of the processor where there is one thread, which others' work does not touch."""
        return self.cpu_seconds if self.threads == 1 else self.seconds

    @property
    def needed(self) -> int:
        """The least budget for it: the predicted peak, and a margin for what the prediction may miss."""
        return round(self.memory.peak + MARGIN_BYTES + MARGIN * self.memory.above_idle)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        memory = asdict(self.memory) | {"peak": self.memory.peak, "above_idle": self.memory.above_idle}
        return asdict(self) | {
            "memory": memory,
            "needed": self.needed,
            "work": self.work,
            "run_seconds": self.seconds * self.steps,
        }


MARGIN, MARGIN_BYTES = 0.05, 8_000_000
"""Of what is above the idle process, and for the process as such."""


def longest_of(lengths: Sequence[int], rows: int) -> float:
    """Expected length of the longest of ``rows`` rows drawn at random: what a batch of them is padded to."""
    ordered = np.sort(np.asarray(lengths, dtype=np.float64))
    share = np.arange(len(ordered) + 1) / len(ordered)
    chance = np.diff(share**rows)  # that the longest is the i-th of all
    return float(ordered @ chance)
