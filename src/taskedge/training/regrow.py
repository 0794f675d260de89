"""Regrowth during a run: every so many steps a share of the entries moves to where the loss pulls most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from taskedge.backbone.linears import linears
from taskedge.forms.regrow import movable, regrow
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.statistics import GRADIENTS, measure
from taskedge.training.seeds import derive
from taskedge.training.trainer_config import FitSettings

BATCHES = 4
"""Training batches whose gradients are summed before a move."""


class Regrow(TrainerCallback):  # type: ignore[misc]
    """Moves entries after every ``settings.regrow`` optimiser steps, a share that falls to 0 with the run.

    At step t of T the share is ``settings.regrow_share·(1 - t/T)``, as in SpIEL (arXiv 2401.16405). The batches to look
    at are drawn by seed and step, so that a resumed run moves what an uninterrupted one does.
    """

    def __init__(self, rows: Sequence[Any], collate: Callable[[list[Any]], Any], settings: FitSettings) -> None:
        self._rows, self._collate, self._settings = rows, collate, settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """What cannot move is refused before the first step."""
        movable(given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After the optimiser, and before a checkpoint is written."""
        done, last = int(state.global_step), int(state.max_steps)
        if done % self._settings.regrow or done >= last:
            return
        model = given["model"]
        known = linears(model)
        watched = {name: known[name] for name in sparse_layers(model)}
        batches = self._batches(done)
        share = self._settings.regrow_share * (1 - done / last)
        with measure(model, watched, batches, needs=(GRADIENTS,)) as seen:
            regrow(model, given["optimizer"], lambda name: seen[name].gradient / len(batches), share)

    def _batches(self, step: int) -> list[Any]:
        draw = torch.Generator().manual_seed(derive(self._settings.seed, step))
        size = self._settings.batch_size
        order = torch.randperm(len(self._rows), generator=draw)[: BATCHES * size].tolist()
        return [
            self._collate([self._rows[place] for place in order[start : start + size]])
            for start in range(0, len(order), size)
        ]
