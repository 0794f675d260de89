"""The start of LoRA-Dash in a run: after a number of optimizer steps, directions are chosen and printed."""

from __future__ import annotations

from collections.abc import Callable

from taskedge.forms.dash import choose_directions, dash_layers
from taskedge.training.callbacks import Callback, TrainState


class DashStart(Callback):
    """Chooses the directions when ``start`` optimizer steps are done; passes and evaluations do not count.

    The count is that of the run, and the directions are in its checkpoints, so a resumed run has those of an
    uninterrupted one.

    Args:
        start: optimizer steps before the start.
        log: called with a line when directions are chosen, or when the run is too short for it.
    """

    def __init__(self, start: int, log: Callable[[str], None]) -> None:
        self._start, self._log = start, log

    def on_train_begin(self, state: TrainState) -> None:
        """Print that the run ends before the start, if it does."""
        if state.max_steps <= self._start and dash_layers(state.model):
            self._log(
                f"LoRA-Dash starts after {self._start} steps and the run has {state.max_steps}: it is plain LoRA; give "
                "a smaller --dash-start"
            )

    def on_step_begin(self, state: TrainState) -> None:
        """Choose the directions at the start."""
        if state.step != self._start:
            return
        chosen = choose_directions(state.model)
        if chosen:
            name, directions = next(iter(chosen.items()))
            counted = sorted(index for indices in chosen.values() for index in indices)
            self._log(
                f"LoRA-Dash: {len(directions)} directions chosen in each of {len(chosen)} linears, the median at place "
                f"{counted[len(counted) // 2] + 1} of the singular values; {name}: "
                f"{', '.join(str(index + 1) for index in directions)}"
            )
