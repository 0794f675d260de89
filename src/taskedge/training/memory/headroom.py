"""Memory that a budget leaves for trial steps, and the callback that keeps a run within its budget."""

from __future__ import annotations

import torch

from taskedge.profiling.process_memory import lifetime_peak_bytes, resident_bytes, trim_heap
from taskedge.training.callbacks import Callback, TrainState

EXCEEDED_BUDGET_FACTOR = 1.05
"""Limit of trial steps relative to the baseline, where the baseline already exceeds the budget."""

_CPU = torch.device("cpu")


class MemoryHeadroom:
    """Memory that a budget leaves for trial steps, in a process that has loaded its base.

    If loading or a first pass exceeded the budget, no configuration can fit. The limit is then a little above the
    baseline, so that the budget that the refusal names is a measured one.

    Args:
        budget: bytes; None for no limit.

    Attributes:
        baseline_bytes: peak resident set before any trial step.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.baseline_bytes = lifetime_peak_bytes(_CPU)

    def set_baseline(self) -> None:
        """Set the baseline to the current lifetime peak: memory used so far is unavoidable."""
        self.baseline_bytes = lifetime_peak_bytes(_CPU)

    @property
    def peak_bytes(self) -> int:
        """Peak resident set so far. If the baseline exceeds the budget, trial steps above it are left out."""
        return self.baseline_bytes if self._is_exceeded else lifetime_peak_bytes(_CPU)

    def fits(self, num_bytes: int) -> bool:
        """Return whether ``num_bytes`` more than the current resident set stay within the limit."""
        if self.budget is None:
            return True
        limit = self.baseline_bytes * EXCEEDED_BUDGET_FACTOR if self._is_exceeded else self.budget
        return resident_bytes() + num_bytes <= limit

    @property
    def _is_exceeded(self) -> bool:
        return self.budget is not None and self.baseline_bytes > self.budget


class ReleaseFreedMemory(Callback):
    """Returns freed memory to the system before the first pass and after each pass.

    Small freed pieces would otherwise add to the peak of the next pass. A call takes some milliseconds.
    """

    def on_train_begin(self, state: TrainState) -> None:
        """Trim the heap, and collect reference cycles."""
        trim_heap()

    def on_pass_end(self, state: TrainState) -> None:
        """Trim the heap after a pass."""
        trim_heap(collect=False)

    def on_step_end(self, state: TrainState) -> None:
        """Trim the heap after the last pass of a step."""
        trim_heap(collect=False)
