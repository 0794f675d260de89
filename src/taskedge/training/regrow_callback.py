"""Changes of the support during a run: every few steps a share of the entries moves to where gradients are largest.

Source: SpIEL (arXiv 2401.16405) for the falling share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskedge.backbone.layers import linears
from taskedge.forms.regrow import regrow, require_movable
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.statistics import GRADIENTS, measure
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.data_order import derive_seed, random_order
from taskedge.training.trainer_config import TrainerConfig

NUM_BATCHES = 4
"""Training batches over which gradients are summed before entries move."""


class Regrow(Callback):
    """Moves entries every ``config.regrow`` optimizer steps.

    At step t of T the share of moved entries is ``config.regrow_share·(1 - t/T)``. The batches for the gradients are
    drawn by seed and step, so that a resumed run moves the same entries as an uninterrupted one.

    Args:
        rows: the training rows.
        collate: makes a batch of a list of them.
        config: settings of the run.
    """

    def __init__(self, rows: Sequence[Any], collate: Callable[[list[Any]], Any], config: TrainerConfig) -> None:
        self._rows, self._collate, self._config = rows, collate, config

    def on_train_begin(self, state: TrainState) -> None:
        """Refuse, before the first step, a form whose entries cannot move."""
        require_movable(state.model)

    def on_step_end(self, state: TrainState) -> None:
        """Move entries if it is time; not after the last step."""
        if state.step % self._config.regrow or state.step >= state.max_steps:
            return
        all_linears = linears(state.model)
        sparse_linears = {name: all_linears[name] for name in sparse_layers(state.model)}
        batches = self._batches(state.step)
        share = self._config.regrow_share * (1 - state.step / state.max_steps)
        with measure(state.model, sparse_linears, batches, needs=(GRADIENTS,)) as statistics:
            regrow(state.model, state.optimizer, lambda name: statistics[name].gradient / len(batches), share)

    def _batches(self, step: int) -> list[Any]:
        size = self._config.batch_size
        order = random_order(len(self._rows), derive_seed(self._config.seed, step))[: NUM_BATCHES * size]
        return [
            self._collate([self._rows[index] for index in order[start : start + size]])
            for start in range(0, len(order), size)
        ]
