"""Callbacks of a run over the cut: the number of the step, and which modules are active in it.

Kill and revive is that of cooperative runs, with steps for rounds (:mod:`taskedge.cooperation.scheduling.freezing`).
The gain of a module in a step is what its step takes off the loss to first order. The device decides, since it has
gradients and values, and states the active modules in each pass.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.scheduling.freezing import ActiveModules, FreezingConfig
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.training.callbacks import Callback, TrainState

_PREFIX = "active-"
_KEPT = 3
"""Files of states that are kept: as many checkpoints can be resumed from, and one more."""


class CutSteps(Callback):
    """Tells the device's end which step is under way: the cloud's dropout follows from it."""

    def __init__(self, end: DeviceEnd) -> None:
        self._end = end

    def on_step_begin(self, state: TrainState) -> None:
        """Count the passes of the step from 0."""
        self._end.step, self._end.pass_of_step = state.step, 0


class KillAndRevive(Callback):
    """Chooses the active modules step by step.

    Args:
        end: the device's end, whose modules exist.
        share: of the modules that stay active.
        folder: of the run; the state is kept there beside each checkpoint.
        every: steps between checkpoints.
        log: called with a line about each change.
    """

    def __init__(
        self, end: DeviceEnd, share: float, folder: Path, every: int, log: Callable[[str], None] = lambda _: None
    ) -> None:
        assert end.modules is not None
        self._end, self._folder, self._every, self._log = end, folder, every, log
        self._modules = end.modules
        self._schedule = ActiveModules(list(end.modules.plan), FreezingConfig(active_share=share))
        self._before: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def on_train_begin(self, state: TrainState) -> None:
        """Continue from the state of the checkpoint.

        Raises:
            InputError: It is missing.
        """
        if not state.step:
            return
        path = self._folder / f"{_PREFIX}{state.step}.json"
        try:
            self._schedule.load_state_dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: cannot be read ({error}): start the run anew with --force") from None

    def on_step_begin(self, state: TrainState) -> None:
        """Choose the modules of the step."""
        self._end.active = self._schedule.begin_round(state.step + 1)

    def on_gradients(self, state: TrainState) -> None:
        """Keep gradients and values of the active modules until the optimizer has moved them."""
        self._before = {
            name: [
                (parameter.grad, parameter.detach().clone())
                for parameter in self._modules.parameters_of(name)
                if parameter.grad is not None
            ]
            for name in self._end.active or ()
        }

    def on_step_end(self, state: TrainState) -> None:
        """Sum up the gains, and keep the state if a checkpoint follows."""
        gains = {}
        for name, kept in self._before.items():
            after = [parameter.detach() for parameter in self._modules.parameters_of(name)]
            gains[name] = sum(
                float(torch.sum(gradient * (value - now))) for (gradient, value), now in zip(kept, after, strict=False)
            )
        self._before = {}
        for line in self._schedule.end_round(state.step, gains):
            self._log(f"step {state.step}: {line}")
        if state.step == state.max_steps or (self._every and state.step % self._every == 0):
            content = json.dumps(self._schedule.state_dict()).encode()
            write_atomic(self._folder / f"{_PREFIX}{state.step}.json", content)
            paths = sorted(self._folder.glob(f"{_PREFIX}*.json"), key=lambda path: int(path.stem.removeprefix(_PREFIX)))
            for path in paths[:-_KEPT]:
                path.unlink()
