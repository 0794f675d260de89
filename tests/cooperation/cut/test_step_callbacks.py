"""Which modules are active, step by step, and that a resumed run continues."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskedge.cooperation.cut.step_callbacks import CutSteps, KillAndRevive
from taskedge.errors import InputError
from taskedge.training.callbacks import TrainState


class End:
    """A device's end with modules of one value each."""

    def __init__(self, names: str = "abcdefgh") -> None:
        self.values = {name: nn.Parameter(torch.zeros(1)) for name in names}
        self.modules = SimpleNamespace(plan=dict.fromkeys(names), parameters_of=lambda name: [self.values[name]])
        self.active = None
        self.step = self.pass_of_step = -1


def steps(end, callback, first, last, most=60):
    """Take steps in which module h has the largest gradient; return the active modules of each."""
    taken = []
    state = TrainState(nn.Module(), None, most, step=first)
    callback.on_train_begin(state)
    for step in range(first, last):
        callback.on_step_begin(state)
        taken.append("".join(end.active))
        for place, (name, value) in enumerate(end.values.items()):
            value.grad = torch.tensor([float(place)]) if name in end.active else None
        callback.on_gradients(state)
        for value in end.values.values():
            if value.grad is not None:
                value.data -= 0.1 * value.grad
        state.step = step + 1
        callback.on_step_end(state)
    return taken


def test_the_modules_that_gain_most_stay_active_and_others_are_tried(tmp_path):
    end, lines = End(), []
    taken = steps(end, KillAndRevive(end, 1 / 8, tmp_path, 10, lines.append), 0, 60)
    assert taken[0] == "abcdefgh"
    assert taken[27:30] == ["ah"] * 3  # after stages of 8, 4 and 2: a trial
    assert taken[30] == "h"
    assert lines


def test_a_resumed_run_continues_as_it_would_have(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = End(), End()
    whole = steps(one, KillAndRevive(one, 1 / 4, tmp_path / "a", 10), 0, 60)
    begun = steps(two, KillAndRevive(two, 1 / 4, tmp_path / "b", 10), 0, 30)
    resumed = steps(two, KillAndRevive(two, 1 / 4, tmp_path / "b", 10), 30, 60)
    assert begun + resumed == whole
    assert len(list((tmp_path / "b").iterdir())) == 3


def test_a_missing_state_is_named(tmp_path):
    end = End()
    with pytest.raises(InputError, match=r"active-30\.json"):
        steps(end, KillAndRevive(end, 1 / 4, tmp_path, 10), 30, 31)


def test_the_end_knows_the_step():
    end = End()
    CutSteps(end).on_step_begin(TrainState(nn.Module(), None, 9, step=4))
    assert (end.step, end.pass_of_step) == (4, 0)
