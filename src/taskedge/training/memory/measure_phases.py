"""Peak of live bytes outside the steps: while entries are selected, and while the result is evaluated."""

from __future__ import annotations

from collections.abc import Callable

from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.memory.extrapolate import CostLine
from taskedge.training.memory.headroom import MemoryHeadroom
from taskedge.training.memory.measure_step import SampleBatches, row_length
from taskedge.training.run import Run


def measure_selection(run: Run, batches: SampleBatches, headroom: MemoryHeadroom) -> CostLine | None:
    """Measure the peak of live bytes of the selection, by rows of a calibration batch.

    Return None for LoRA, which selects nothing.
    """
    if run.config.form == "lora":
        return None
    return _measure_peak(
        lambda rows: run.select([batches.batch(rows, batches.longest)]), len(batches.lengths), headroom
    )


def measure_evaluation(run: Run, headroom: MemoryHeadroom) -> CostLine | None:
    """Measure the peak of live bytes of the evaluation, by rows of a pass; None without held-out data."""
    if not run.eval_rows():
        return None
    ordered = sorted(run.eval_rows(), key=row_length, reverse=True)
    task, base = run.task, run.base
    return _measure_peak(
        lambda rows: task.evaluate(base.model, base, ordered[:rows], rows, lambda _: None), len(ordered), headroom
    )


def _measure_peak(work: Callable[[int], object], max_rows: int, headroom: MemoryHeadroom) -> CostLine:
    """Run ``work`` with one row and, if there is room, with two."""
    points: list[tuple[float, float]] = []
    for rows in range(1, min(2, max_rows) + 1):
        if points and not headroom.fits(2 * round(points[0][1])):
            break
        with LiveBytes() as live:
            work(rows)
        points.append((rows, live.peak))
    return CostLine(tuple(points))
