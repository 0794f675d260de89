"""Draws of columns during a run: which entries train in which steps, and equal bits after an interruption."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.forms.install import installation
from taskedge.forms.sparse import sparse_layers
from taskedge.training.callbacks import Callback
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=3, batch_size=4, lr=1e-2, seed=5, checkpoint_every=1)
DRAWS = 3


def rows(count=20):
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, tiny.VOCABULARY, (6,), generator=draw), "labels": place % tiny.LABELS}
        for place in range(count)
    ]


def collate(examples):
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


class Watch(Callback):
    """Record the columns of the entries that moved in every step, by linear."""

    def __init__(self):
        self.moved = []

    def on_step_begin(self, state):
        self._before = offsets(state.model)

    def on_step_end(self, state):
        self.moved.append(
            {
                name: set(layer.entries.columns[layer.entries.offsets != before].tolist())
                for (name, layer), before in zip(sparse_layers(state.model).items(), self._before, strict=True)
            }
        )


class Stop(Exception):
    pass


class StopAfter(Callback):
    """Raise at the beginning of step ``step``, when its checkpoint is on the disk."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, state):
        if state.step == self.step:
            raise Stop


def model():
    made = tiny.bert(dropout=0.2)
    return te.install(made, te.select(made, [tiny.batch(made)], columns=2, column_draws=DRAWS), step="activation")


def offsets(made):
    return [layer.entries.offsets.detach().clone() for layer in sparse_layers(made).values()]


def run(folder, made, **options):
    torch.manual_seed(0)
    train(made, rows(), collate, SETTINGS, folder, progress=False, **options)
    return offsets(made)


def test_each_draw_trains_for_a_third_of_the_steps(tmp_path):
    made, watch = model(), Watch()
    run(tmp_path, made, callbacks=[watch])
    assert len(watch.moved) == 15
    for name, draws in installation(made).support.settings["drawn_columns"].items():
        assert len(draws) == DRAWS
        for number, columns in enumerate(draws):
            moved = [step[name] for step in watch.moved[5 * number : 5 * number + 5]]
            assert set.union(*moved) == set(columns), (name, number)


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, stop):
    whole = run(tmp_path / "whole", model())
    with pytest.raises(Stop):
        run(tmp_path / "cut", model(), callbacks=[StopAfter(stop)])
    resumed = run(tmp_path / "cut", model(), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
