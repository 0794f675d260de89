"""Shared by the tests of rotate and its neighbours."""

from __future__ import annotations

import tiny
import torch
from transformers import TrainerCallback

import taskedge as te


def rows(count=26):
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


def model():
    made = tiny.bert(dropout=0.2)
    return te.install(made, te.select(made, [tiny.batch(made)], per_neuron=2), step="activation")


class Watch(TrainerCallback):
    """What changed in each step, of parameters and of the optimiser's state; ends the run the hard way at ``stop``."""

    def __init__(self, stop=None):
        self.stop, self.moved, self.before = stop, [], {}

    def _now(self, made, optimizer):
        state = getattr(optimizer, "optimizer", optimizer).state
        return {
            name: [p.detach().clone(), *(t.clone() for t in state.get(p, {}).values())]
            for name, p in made.named_parameters()
            if name.startswith("classifier.") or name.endswith("offsets")  # weights follow their offsets when read
        }

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.before = self._now(model, optimizer)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        now = self._now(model, optimizer)
        self.moved.append(
            {
                name
                for name, tensors in now.items()
                if len(tensors) != len(self.before[name]) or not all(map(torch.equal, tensors, self.before[name]))
            }
        )
        if state.global_step == self.stop:
            raise KeyboardInterrupt
