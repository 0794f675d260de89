"""The gates of TAPS in a run: a penalty that closes them after a while, and lines that say which are open."""

from __future__ import annotations

import math
from collections.abc import Callable

from taskedge.forms.gated_entries import keep_open_columns
from taskedge.forms.taps import layer_gates
from taskedge.training.callbacks import Callback, TrainState


class LayerGatePenalty(Callback):
    """Adds ``penalty · mean_l |s_l|`` to the loss of every step after a warm-up, and keeps the columns of open gates.

    The printed loss is without the penalty. The mean is over the gates of the model: the published code divides by 52,
    whatever their number. Which gates are open follows from their scores, so there is nothing else to save.

    Args:
        penalty: factor of the mean.
        warmup: share of the steps without the penalty.
        log: called with a line when the penalty begins and when training ends.
    """

    def __init__(self, penalty: float, warmup: float, log: Callable[[str], None]) -> None:
        self._penalty, self._warmup, self._log = penalty, warmup, log
        self._open: frozenset[str] | None = None

    def on_step_begin(self, state: TrainState) -> None:
        """Start the gradients of the scores with those of the penalty, and follow gates that changed."""
        gates = layer_gates(state.model)
        is_open = frozenset(name for name, gate in gates.items() if gate.is_open)
        if is_open != self._open:
            keep_open_columns(state.model)
            self._open = is_open
        start = math.ceil(self._warmup * state.max_steps)
        if state.step == start and self._penalty:
            self._log(f"the penalty on {len(gates)} gates begins after {start} steps: {len(is_open)} are open")
        if state.step >= start and self._penalty:
            for gate in gates.values():
                gate.score.grad = gate.score.detach().sign() * (self._penalty / len(gates))

    def on_step_end(self, state: TrainState) -> None:
        """Print at the end how many gates are open."""
        if state.step == state.max_steps:
            gates = layer_gates(state.model)
            closed = [name for name, gate in gates.items() if not gate.is_open]
            self._log(f"{len(gates) - len(closed)} of {len(gates)} gates are open")
