"""Weights of classes are exact across micro-batches, and hints name what is rare or never predicted."""

from __future__ import annotations

import pytest
import tiny
import torch

from taskedge.errors import InputError
from taskedge.training.class_weights import (
    balanced_weights,
    never_predicted_hint,
    rare_class_hint,
    weighted_loss,
    weights_by_label,
)
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


def test_sets_of_labels_balance_rows_with_and_without_each_label():
    """The oracle: torch's loss with the weight of every cell."""
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0]])
    weights = balanced_weights(labels.tolist(), ["a", "b", "c"])
    torch.testing.assert_close(weights, torch.tensor([[5 / 6, 5 / 4, 5 / 8], [5 / 4, 5 / 6, 5 / 2]]))
    assert weights_by_label(weights, ["a", "b", "c"]) == pytest.approx({"a": 5 / 4, "b": 5 / 6, "c": 5 / 2})
    model = tiny.bert().eval()
    model.config.problem_type = "multi_label_classification"
    ids = torch.randint(1, tiny.VOCABULARY, (5, 6), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids).logits
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    of_cells = torch.where(labels > 0, weights[1], weights[0])
    with weighted_loss(model, weights):
        losses = PassesLoss(model)
        batches = [{"input_ids": ids[part], "labels": labels[part]} for part in (slice(0, 4), slice(4, 5))]
        losses.begin_step(batches)
        torch.testing.assert_close(sum(losses(batch) for batch in batches), (cells * of_cells).mean())
    with pytest.raises(InputError, match="no training row has the label 'b'"):
        balanced_weights([[1.0, 0.0], [0.0, 0.0]], ["a", "b"])
    hint = rare_class_hint({"a": 50, "b": 5}, weighted=False, rows_with_sets=100)
    assert hint.startswith("hint: 1 class is rare among 100 rows ('b' 5)")
    assert rare_class_hint({"a": 50, "b": 15}, weighted=False, rows_with_sets=100) == ""


def test_hints():
    assert rare_class_hint({"a": 50, "b": 50}, weighted=False) == ""
    hint = rare_class_hint({"a": 95, "b": 5}, weighted=False)
    assert hint.startswith("hint: 1 class is rare among 100 rows ('b' 5)")
    assert rare_class_hint({"a": 95, "b": 5}, weighted=True) == ""
    assert never_predicted_hint(["a", "b"], [0, 1], [0, 1]) == ""
    assert "1 class is never predicted in 2 rows of 3 ('b' 2): train" in never_predicted_hint(
        ["a", "b"], [0, 1, 1], [0, 0, 0]
    )
