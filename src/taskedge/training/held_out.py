"""Held-out loss while a run trains: when to stop, and which values to keep.

The loss at every evaluation is an entry of the training log, which checkpoints hold. All decisions follow from that
log, so that a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.evaluation import evaluation_mode
from taskedge.training import checkpoint
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.guard import guarded, in_file
from taskedge.training.passes_loss import PassesLoss

HELD_OUT_LOSS = "held_out_loss"
"""Key of the entries of the training log that an evaluation adds."""
_BEST = "best-"

Row = dict[str, Any]
Collate = Callable[[list[Row]], Any]


def held_out_loss(model: nn.Module, rows: Sequence[Row], collate: Collate, batch_size: int) -> float:
    """Return the mean loss over the labels of the rows, in evaluation mode; the loss is the one that training lowers.

    Random generators are not used. The mode of the model is restored.

    Raises:
        RowError: the model fails on a row.
    """
    parts = [list(range(start, min(start + batch_size, len(rows)))) for start in range(0, len(rows), batch_size)]
    loss = PassesLoss(model)
    total = 0.0
    with evaluation_mode(model), torch.no_grad():
        loss.begin_step([collate([rows[index] for index in part]) for part in parts])
        for part in parts:
            with guarded(model, rows, part, collate):
                total += float(loss(collate([rows[index] for index in part])))
    return total


class HeldOut(Callback):
    """Evaluates every few steps, asks the loop to stop, and keeps the best values in the folder of the run.

    Args:
        rows: the held-out rows.
        collate: makes a batch of a list of them.
        path: their file, for messages.
        folder: of the run.
        every: optimizer steps between evaluations; the last step has one as well.
        patience: evaluations without a new best after which the run stops; None to train to the end.
        keep_best: whether to keep the values of the best evaluation.
        batch_size: rows that pass through the model at once.
        log: called with a line for each evaluation.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        collate: Collate,
        path: Path,
        folder: Path,
        *,
        every: int,
        patience: int | None,
        keep_best: bool,
        batch_size: int,
        log: Callable[[str], object],
    ) -> None:
        self._rows, self._collate, self._path, self._folder = rows, collate, path, folder
        self._every, self._patience, self._keep_best = every, patience, keep_best
        self._batch_size, self._log = batch_size, log
        self.entries: list[dict[str, Any]] = []

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry with the lowest loss, the first of equals; None before the first evaluation."""
        return min(self.entries, key=lambda entry: float(entry[HELD_OUT_LOSS]), default=None)

    def on_train_begin(self, state: TrainState) -> None:
        """Read the evaluations of the log, and remove values that are kept from later steps than the log's."""
        self.entries = [entry for entry in state.log if HELD_OUT_LOSS in entry]
        for path in self._folder.glob(f"{_BEST}*"):
            if int(path.name.removeprefix(_BEST)) > state.step:
                shutil.rmtree(path, ignore_errors=True)
        self._decide(state)

    def on_step_end(self, state: TrainState) -> None:
        """Evaluate if it is time."""
        if state.step % self._every and state.step != state.max_steps:
            return
        begin = time.perf_counter(), time.process_time()
        with in_file(self._path):
            loss = held_out_loss(state.model, self._rows, self._collate, self._batch_size)
        before = self.best
        entry = {"step": state.step, HELD_OUT_LOSS: loss}
        state.log.append(entry)
        self.entries.append(entry)
        self._decide(state)
        is_best = self.best is entry
        if is_best and self._keep_best:
            checkpoint.write_as(self._folder, f"{_BEST}{state.step}", state)
            self._remove_unneeded()
        if is_best or before is None:
            place = "the best so far"
        else:
            place = f"the best is {before[HELD_OUT_LOSS]:.4f} of step {before['step']}"
        self._log(f"step {state.step} of {state.max_steps}: held-out loss {loss:.4f}, {place}")
        state.outside_seconds += time.perf_counter() - begin[0]
        state.outside_cpu_seconds += time.process_time() - begin[1]
        if state.stop and state.step < state.max_steps:
            self._log(
                f"stopped at step {state.step} of {state.max_steps}: {self._patience} evaluations without a lower "
                "held-out loss"
            )

    def restore_best(self, model: nn.Module) -> int:
        """Set the trained values to those of the best evaluation, bit for bit, and return its step."""
        best = self.best
        assert best is not None, "the last step has an evaluation"
        step = int(best["step"])
        checkpoint.Checkpoint(self._folder / f"{_BEST}{step}").restore_parameters(model)
        return step

    def _decide(self, state: TrainState) -> None:
        """Ask the loop to stop if the last evaluations brought no new best."""
        best = self.best
        if self._patience is not None and best is not None:
            since = sum(entry["step"] > best["step"] for entry in self.entries)
            state.stop = since >= self._patience

    def _remove_unneeded(self) -> None:
        """Remove kept values, but for the best now and the best at each checkpoint from which a run may resume."""
        needed = set()
        for last in (*checkpoint.steps(self._folder), self.entries[-1]["step"]):
            until = [entry for entry in self.entries if entry["step"] <= last]
            if until:
                needed.add(min(until, key=lambda entry: float(entry[HELD_OUT_LOSS]))["step"])
        for path in self._folder.glob(f"{_BEST}*"):
            if int(path.name.removeprefix(_BEST)) not in needed:
                shutil.rmtree(path, ignore_errors=True)
