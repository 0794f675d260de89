"""Weights of classes are exact across micro-batches, and hints name what is rare or never predicted."""

from __future__ import annotations

import pytest
import tiny
import torch

from taskedge.errors import InputError
from taskedge.training.class_weights import balanced_weights, never_predicted_hint, rare_class_hint, weighted_loss
from taskedge.training.passes_loss import PassesLoss


def test_every_class_has_the_same_weight_in_total():
    weights = balanced_weights([0, 0, 0, 1, 2, 2], ["a", "b", "c"])
    assert (weights * torch.tensor([3, 1, 2])).tolist() == pytest.approx([2.0, 2.0, 2.0])
    with pytest.raises(InputError, match="class 'b' has no training row"):
        balanced_weights([0, 0], ["a", "b"])


def test_the_loss_and_its_gradient_are_those_of_the_weighted_rows():
    """The oracle: cross entropy by torch, row by row."""
    model = tiny.bert().eval()
    ids = torch.randint(1, tiny.VOCABULARY, (5, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 2]) % tiny.LABELS
    weights = balanced_weights(labels.tolist(), [str(index) for index in range(int(labels.max()) + 1)])
    weights = torch.cat([weights, torch.ones(tiny.LABELS - len(weights))])
    logits = model(input_ids=ids).logits
    rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (rows * weights[labels]).mean()
    expected.backward()
    gradient = model.classifier.weight.grad.clone()
    model.zero_grad()
    with weighted_loss(model, weights):
        losses = PassesLoss(model)
        batches = [{"input_ids": ids[part], "labels": labels[part]} for part in (slice(0, 4), slice(4, 5))]
        losses.begin_step(batches)
        total = sum(losses(batch) for batch in batches)
        total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(model.classifier.weight.grad, gradient)
    assert "forward" not in model.__dict__


def test_hints():
    assert rare_class_hint({"a": 50, "b": 50}, weighted=False) == ""
    hint = rare_class_hint({"a": 95, "b": 5}, weighted=False)
    assert hint.startswith("hint: 1 class is rare among 100 rows ('b' 5)")
    assert rare_class_hint({"a": 95, "b": 5}, weighted=True) == ""
    assert never_predicted_hint(["a", "b"], [0, 1], [0, 1]) == ""
    assert "1 class is never predicted ('b' (2) rows)" in never_predicted_hint(["a", "b"], [0, 1, 1], [0, 0, 0])
