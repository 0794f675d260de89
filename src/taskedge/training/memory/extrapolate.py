"""Extrapolation from small measured passes to the memory and time of a run. Pure functions.

Live bytes are linear in the number of rows, and step time is nearly so, so a large step follows from small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskedge.profiling.line_fit import rising_line
from taskedge.training.memory.step_cost import PeakMemory

LOOP_BYTES = 5_000_000
"""Bytes that the training loop and its records take beside a step (measured on Linux x86)."""


@dataclass(frozen=True)
class Timing:
    """Seconds of wall-clock and of processor time."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class CostLine:
    """A cost as a function of the rows of a pass.

    Attributes:
        points: measured (rows, cost), by rising rows.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, rows: float) -> float:
        """Return the cost at ``rows``: measured if available, else on the line through the last two points."""
        measured = dict(self.points)
        if rows in measured:
            return measured[rows]
        last = self.points[-2:]
        costs = [max(cost, 1e-9) for _, cost in last]  # the fit is relative
        work = np.array([*(measured_rows for measured_rows, _ in last), rows])
        return float(rising_line(work, range(1, len(last) + 1), costs)[-1])


@dataclass(frozen=True)
class StepMeasurement:
    """One kind of step, measured at a few numbers of rows.

    Attributes:
        saved: live bytes at the end of the forward pass.
        peak: peak of live bytes.
        excess: bytes by which the resident set rose beyond the live bytes.
        wall, cpu: seconds of a pass.
        optimizer: seconds of the optimizer, once a step.
        resident: resident set of the process between passes, trained state included.
        compiler: the part of ``resident`` that a JIT compiler takes which other configurations have loaded.
    """

    saved: CostLine
    peak: CostLine
    excess: int
    wall: CostLine
    cpu: CostLine
    optimizer: Timing
    resident: int
    compiler: int


@dataclass(frozen=True)
class IdleMemory:
    """Bytes of the process without training.

    Attributes:
        process: resident set before the base is loaded.
        base: bytes of the base weights.
        loading: peak resident set while the base was loaded.
    """

    process: int
    base: int
    loading: int


@dataclass(frozen=True)
class TrainedMemory:
    """Bytes that stay for the whole run.

    Attributes:
        state: entries with their positions, copies of the head, gradients and optimizer state.
        head: the part of ``state`` that belongs to fully trained parameters.
        backup: copies that only the measurement keeps, to restore the model.
    """

    state: int
    head: int
    backup: int


def predict_memory(
    measured: StepMeasurement,
    idle: IdleMemory,
    trained: TrainedMemory,
    *,
    rows: int,
    input_bytes: int,
    compiler_bytes: int,
    selection_bytes: int | None,
    evaluation_bytes: int | None,
    loss_bytes: int = 0,
) -> PeakMemory:
    """Predict the peak of a run: that of its most expensive part.

    Args:
        measured: the kind of step that the run makes.
        idle: the process without training.
        trained: what stays for the whole run.
        rows: rows of a pass.
        input_bytes: inputs of a step.
        compiler_bytes: change of the runtime bytes by a JIT compiler that the run loads, or does not load.
        selection_bytes: peak of live bytes while entries are selected; None if the run selects none.
        evaluation_bytes: the same while the result is evaluated; None without held-out data.
        loss_bytes: what the loss takes at the end of the forward pass, while all saved activations are there, if the
            measurement left it out.
    """
    runtime = measured.resident - idle.process - idle.base - trained.state - trained.backup + measured.excess
    runtime = max(0, runtime + compiler_bytes) + LOOP_BYTES
    entries = trained.state - trained.head
    saved = round(measured.saved.at(rows))
    temporary = max(loss_bytes, round(measured.peak.at(rows)) - saved)
    parts = [PeakMemory(idle.process, idle.base, runtime, entries, trained.head, saved + input_bytes, temporary)]
    if selection_bytes is not None:
        parts.append(PeakMemory(idle.process, idle.base, runtime, 0, 0, 0, selection_bytes, part="selection"))
    if evaluation_bytes is not None:
        parts.append(
            PeakMemory(idle.process, idle.base, runtime, entries, trained.head, 0, evaluation_bytes, part="evaluation")
        )
    loading = max(0, idle.loading - idle.process - idle.base)
    parts.append(PeakMemory(idle.process, idle.base, 0, 0, 0, 0, loading, part="loading"))
    return max(parts, key=lambda part: part.peak)


def steps_of_epoch(num_rows: int, batch_size: int, accumulate: int) -> int:
    """Return the optimizer steps of one epoch."""
    return math.ceil(num_rows / (batch_size * accumulate))


def predict_step_time(
    measured: StepMeasurement, lengths: Sequence[int], *, rows: int, batch_size: int, accumulate: int
) -> Timing:
    """Predict the seconds of an optimizer step, as a mean over an epoch.

    Args:
        measured: the kind of step, its time measured on rows padded to the typical longest row of a batch.
        lengths: tokens of each training row.
        rows: rows of a pass.
        batch_size, accumulate: rows of a batch, batches of a step.
    """
    passes = len(lengths) / rows / steps_of_epoch(len(lengths), batch_size, accumulate)
    padding = expected_longest(lengths, rows) / expected_longest(lengths, batch_size)  # fewer rows, less padding
    return Timing(
        wall=passes * measured.wall.at(rows * padding) + measured.optimizer.wall,
        cpu=passes * measured.cpu.at(rows * padding) + measured.optimizer.cpu,
    )


def expected_longest(lengths: Sequence[int], rows: int) -> float:
    """Return the expected length of the longest of ``rows`` randomly drawn rows, to which a batch is padded."""
    ordered = np.sort(np.asarray(lengths, dtype=np.float64))
    share = np.arange(len(ordered) + 1) / len(ordered)
    probability = np.diff(share**rows)  # that the longest is the i-th of all
    return float(ordered @ probability)
