"""Importance of entries: exact where the loss is linear, and the model is left as it was."""

from __future__ import annotations

import pytest
import task_deltas
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.delta.combination.importance import entry_importance
from taskedge.errors import InputError

LINEAR = "bert.encoder.layer.1.output.dense"


class LinearLoss(nn.Module):
    """A model whose loss is linear in its weights: the first-order term is the loss difference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.head(self.body(x)).sum()}


@pytest.mark.parametrize("at", ["base", "tuned"])
def test_it_is_the_difference_of_a_linear_loss(at):
    model, x = LinearLoss(), torch.arange(10.0).view(2, 5)
    delta = task_deltas.by_hand(model, {"body": {0: 0.5, 7: -1.0, 19: 2.0}})
    importance = entry_importance(model, delta, [(x,)], at=at)["body"]
    with torch.no_grad():
        tuned = float(te.apply(LinearLoss(), delta)(x)["loss"])
        for index, flat in enumerate((0, 7, 19)):
            changes = {0: 0.5, 7: -1.0, 19: 2.0}
            del changes[flat]
            without = te.apply(LinearLoss(), task_deltas.by_hand(LinearLoss(), {"body": changes}))
            assert float(importance[index]) == pytest.approx(abs(tuned - float(without(x)["loss"])), rel=1e-4)


def test_gradients_of_batches_do_not_cancel():
    model, x = LinearLoss(), torch.arange(10.0).view(2, 5)
    delta = task_deltas.by_hand(model, {"body": {0: 0.5, 7: -1.0}})
    once = entry_importance(model, delta, [(x,)])["body"]
    assert torch.allclose(entry_importance(model, delta, [(x,), (-x,)])["body"], 2 * once)


def test_the_importance_of_the_weight_uses_the_tuned_weight():
    model, x = LinearLoss(), torch.arange(10.0).view(2, 5)
    delta = task_deltas.by_hand(model, {"body": {7: -1.0}})
    change, weight = (float(entry_importance(model, delta, [(x,)], kind=kind)["body"]) for kind in ("change", "weight"))
    assert weight == pytest.approx(change * abs(float(model.body.weight[1, 2]) - 1), rel=1e-5)


@pytest.mark.parametrize("at", ["base", "tuned"])
def test_the_model_is_left_as_it_was(bert, at):
    delta = task_deltas.tuned(tiny.bert(), 1)
    entry_importance(bert, delta, [tiny.batch(bert)], at=at)
    assert tiny.same_bits(tiny.state(bert), tiny.state(tiny.bert()))
    assert all(parameter.requires_grad for parameter in bert.parameters())
    assert not bert.training


def test_the_head_of_the_task_is_used(bert):
    delta = task_deltas.by_hand(bert, {LINEAR: {3: 1.0}})
    zero = te.Delta(delta.linears, {"classifier.weight": torch.zeros(3, 16)})
    assert float(entry_importance(bert, zero, [tiny.batch(bert)])[LINEAR]) == 0
    assert float(entry_importance(bert, delta, [tiny.batch(bert)])[LINEAR]) > 0


def test_what_cannot_be_used(bert):
    delta = task_deltas.tuned(tiny.bert(), 1)
    with pytest.raises(InputError, match="there are no batches"):
        entry_importance(bert, delta, [])
    wide = te.Delta(delta.linears, {"classifier.weight": torch.zeros(7, 16)})
    with pytest.raises(InputError, match=r"'classifier.weight' is \[7, 16\] in the delta and \[3, 16\]"):
        entry_importance(bert, wide, [tiny.batch(bert)])
