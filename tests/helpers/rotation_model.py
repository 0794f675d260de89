"""A small model that trains in turns, and what changes in each step."""

from __future__ import annotations

import tiny
import torch

import taskedge as te
from taskedge.training.callbacks import Callback


def rows(count=26):
    draw = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(1, tiny.VOCABULARY, (6,), generator=draw), "labels": index % tiny.LABELS}
        for index in range(count)
    ]


def collate(examples):
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


def model():
    made = tiny.bert(dropout=0.2)
    return te.install(made, te.select(made, [tiny.batch(made)], per_neuron=2), step="activation")


class Watch(Callback):
    """Record the parameters and optimizer state that each step changes. Interrupt the run at step ``stop``."""

    def __init__(self, stop=None):
        self.stop, self.moved, self.before = stop, [], {}

    def _values(self, state):
        moments = state.optimizer.state
        return {
            name: [p.detach().clone(), *(t.clone() for t in moments.get(p, {}).values())]
            for name, p in state.model.named_parameters()
            if name.startswith("classifier.") or name.endswith("offsets")  # weights follow their offsets when read
        }

    def on_step_begin(self, state):
        self.before = self._values(state)

    def on_step_end(self, state):
        moved = set()
        for name, tensors in self._values(state).items():
            if len(tensors) != len(self.before[name]) or not all(map(torch.equal, tensors, self.before[name])):
                moved.add(name)
        self.moved.append(moved)
        if state.step == self.stop:
            raise KeyboardInterrupt
