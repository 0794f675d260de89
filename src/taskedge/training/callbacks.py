"""Hooks of the training loop, and those that every run has: timer, progress line, TensorBoard."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from taskedge.reporting.progress import ProgressDisplay, show_progress

TENSORBOARD_FOLDER = "runs"
"""Folder of the TensorBoard logs within the folder of the run."""


@dataclass
class TrainState:
    """Position of a training run, and what it works on. Callbacks may add to the log and stop; the loop does the rest.

    Attributes:
        model: the model in training.
        optimizer: its optimizer.
        max_steps: optimizer steps of the whole run.
        step: optimizer steps done.
        loss_sum: sum of the losses of these steps.
        log: one entry every few steps: loss, gradient norm, learning rate, epoch, step; and one for each evaluation.
        stop: whether a callback asks to end after this step.
        outside_seconds, outside_cpu_seconds: of this call, spent within steps on what is no part of them.
    """

    model: nn.Module
    optimizer: Optimizer
    max_steps: int
    step: int = 0
    loss_sum: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    stop: bool = False
    outside_seconds: float = 0.0
    outside_cpu_seconds: float = 0.0


class Callback:
    """Base class of callbacks. Every hook does nothing here.

    Hooks run in the order in which they are declared below. Those of several callbacks run in the order of the list.
    """

    def on_train_begin(self, state: TrainState) -> None:
        """Run before the first step, after a checkpoint was restored."""

    def on_step_begin(self, state: TrainState) -> None:
        """Run before the first pass of a step."""

    def on_pass_end(self, state: TrainState) -> None:
        """Run after each forward and backward pass of a step except the last."""

    def on_gradients(self, state: TrainState) -> None:
        """Run when the gradients of a step are complete and clipped, before the optimizer uses them."""

    def on_step_end(self, state: TrainState) -> None:
        """Run after the optimizer, when ``state.step`` counts the step, and before a checkpoint is written."""

    def on_log(self, state: TrainState) -> None:
        """Run after an entry was added to ``state.log``."""

    def on_train_end(self) -> None:
        """Run when training ends, also with an error."""


class StepTimer(Callback):
    """Measures the mean duration of a step, by wall clock and by processor time."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._begin = self._end = self._outside = (0.0, 0.0)

    @property
    def wall_seconds(self) -> float:
        """Mean seconds of a step; 0 before the first."""
        return (self._end[0] - self._begin[0] - self._outside[0]) / max(self._num_steps, 1)

    @property
    def cpu_seconds(self) -> float:
        """Mean processor seconds of a step; 0 before the first."""
        return (self._end[1] - self._begin[1] - self._outside[1]) / max(self._num_steps, 1)

    def on_step_begin(self, state: TrainState) -> None:
        """Start the clocks at the first step."""
        if not self._num_steps:
            self._begin = time.perf_counter(), time.process_time()

    def on_step_end(self, state: TrainState) -> None:
        """Read the clocks."""
        self._num_steps += 1
        self._end = time.perf_counter(), time.process_time()
        self._outside = state.outside_seconds, state.outside_cpu_seconds


class ProgressLine(Callback):
    """Shows steps, time left and the loss on standard error: a changing line on a terminal, whole lines in a log."""

    def __init__(self) -> None:
        self._display: ProgressDisplay | None = None

    def on_train_begin(self, state: TrainState) -> None:
        """Open the display."""
        log = partial(print, file=sys.stderr, flush=True)
        self._display = show_progress(state.max_steps, "training", "step", log, initial=state.step)

    def on_step_end(self, state: TrainState) -> None:
        """Advance the display."""
        if self._display is not None:
            self._display.update(1)

    def on_log(self, state: TrainState) -> None:
        """Show the newest loss."""
        if self._display is not None:
            self._display.set_postfix(loss=f"{state.log[-1]['loss']:.3f}", refresh=False)

    def on_train_end(self) -> None:
        """End the display."""
        if self._display is not None:
            self._display.close()


class TensorBoardLog(Callback):
    """Writes the log for TensorBoard.

    Args:
        folder: the folder of the run; the log is written to ``TENSORBOARD_FOLDER`` within it.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = _summary_writer(str(folder / TENSORBOARD_FOLDER))

    def on_log(self, state: TrainState) -> None:
        """Write the newest entry, one scalar for each of its values."""
        entry = state.log[-1]
        for name, value in entry.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, entry["step"])
        self._writer.flush()

    def on_train_end(self) -> None:
        """Close the file."""
        self._writer.close()


def _summary_writer(folder: str) -> Any:
    """Return a writer of the ``tensorboard`` package or else of ``tensorboardX``."""
    try:
        from torch.utils import tensorboard as package
    except ImportError:
        package = importlib.import_module("tensorboardX")
    return package.SummaryWriter(log_dir=folder)
