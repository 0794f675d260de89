"""Columns that change during a run: the draws of a support train one after the other, for equally many steps."""

from __future__ import annotations

from torch import nn

from taskedge.forms.column_draws import number_of_draws, use_draw
from taskedge.forms.install import installation
from taskedge.training.callbacks import Callback, TrainState


def draws_columns(model: nn.Module) -> bool:
    """Return whether the model trains a support with several draws of columns."""
    return installation(model) is not None and number_of_draws(model) > 1


class ColumnDraws(Callback):
    """Trains draw k of D in the steps from ``k·T/D`` to ``(k + 1)·T/D`` of T."""

    def __init__(self) -> None:
        self._draw: int | None = None

    def on_step_begin(self, state: TrainState) -> None:
        """Take the draw of this step, if it is another than that of the step before."""
        draw = self._draw_of(state.step, state)
        if draw == self._draw:
            return
        # a run that resumes within a draw has moments of that draw only
        is_new = state.step > 0 and draw != self._draw_of(state.step - 1, state)
        use_draw(state.model, draw, state.optimizer if is_new else None)
        self._draw = draw

    @staticmethod
    def _draw_of(step: int, state: TrainState) -> int:
        return step * number_of_draws(state.model) // state.max_steps
