"""Peak of live bytes outside the steps: while entries are selected, and while the result is evaluated."""

from __future__ import annotations

from collections.abc import Callable

from taskedge.backbone.label_loss import IGNORED_LABEL, LabelLossModel, label_shift_of, loss_bytes
from taskedge.backbone.linear_cross_entropy import chunk_limit
from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.memory.extrapolate import CostLine
from taskedge.training.memory.headroom import MemoryHeadroom
from taskedge.training.memory.measure_step import SampleBatches, row_length
from taskedge.training.run import Run
from taskedge.training.selection_settings import FORMS_OF_ENTRIES


class LossBytes:
    """Bytes that the loss of a causal language model takes, beside what is measured with chunks of one token.

    They rise with the labeled tokens of a pass up to one chunk, so that no line through small passes predicts them.
    """

    def __init__(self, run: Run) -> None:
        self._model, self._counts = run.base.model, list[int]()
        if isinstance(self._model, LabelLossModel):
            shift = label_shift_of(self._model)
            rows = [*run.rows, *run.eval_rows()]
            counts = (sum(label != IGNORED_LABEL for label in row["labels"][shift:]) for row in rows)
            self._counts = sorted(counts, reverse=True)

    def at(self, rows: int) -> int:
        """Return the bytes for a pass of the ``rows`` rows with the most labeled tokens; 0 for any other model."""
        return loss_bytes(self._model, sum(self._counts[:rows]))


def measure_selection(run: Run, batches: SampleBatches, headroom: MemoryHeadroom) -> CostLine | None:
    """Measure the peak of live bytes of the selection, by rows of a calibration batch.

    Return None for forms that select nothing.
    """
    if run.config.form not in FORMS_OF_ENTRIES:
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
        with LiveBytes() as live, chunk_limit(1):  # the loss of a language model is added by its own formula
            work(rows)
        points.append((rows, live.peak))
    return CostLine(tuple(points))
