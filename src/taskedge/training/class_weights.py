"""Weights of classes in the training loss, and hints about classes that are rare or never predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from taskedge.errors import InputError

RARE = 0.2
"""Share of its even part (rows / classes) below which a class is called rare."""


def balanced_weights(indices: Sequence[Any], labels: Sequence[str]) -> Tensor:
    """Return the weight of each class, ``rows / (classes · rows of the class)``, float32 [classes].

    Rows with sets of labels (0.0 or 1.0 for each label) have two classes for each label, without it and with it:
    float32 [2, labels], in this order. The mean weight of a row is 1, so that rates keep their meaning.

    Raises:
        InputError: a class has no row.
    """
    if isinstance(indices[0], Sequence):
        having = torch.tensor(indices).sum(0)
        for label, count in zip(labels, having.tolist(), strict=True):
            if not 0 < count < len(indices):
                what = "every" if count else "no"
                raise InputError(
                    f"--class-weights balanced: {what} training row has the label {label!r}, so there is no balance: "
                    "leave out that label, or --class-weights"
                )
        return len(indices) / (2 * torch.stack([len(indices) - having, having]))
    counts = Counter(indices)
    missing = [label for index, label in enumerate(labels) if not counts[index]]
    if missing:
        raise InputError(
            f"--class-weights balanced: class {missing[0]!r} has no training row: give a smaller --validation, or "
            "leave out --class-weights"
        )
    return torch.tensor([len(indices) / (len(labels) * counts[index]) for index in range(len(labels))])


@contextmanager
def weighted_loss(model: nn.Module, weights: Tensor | None) -> Iterator[None]:
    """Compute the loss of a classifier with weights of the classes inside the block; None changes nothing.

    The loss of a batch is ``sum_i weights[y_i] · nll_i / rows``: linear in the rows, so that micro-batches sum to it.
    Of sets of labels it is the mean over the labels as well.
    """
    if weights is None:
        yield
        return
    forward = model.forward

    @wraps(forward)
    def weighted(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        labels = kwargs.get("labels")
        if isinstance(labels, Tensor):
            logits = outputs["logits"].float()
            of_classes = weights.to(logits.device)
            if of_classes.dim() == 2:
                of_labels = torch.where(labels > 0.5, of_classes[1], of_classes[0])
                outputs["loss"] = binary_cross_entropy_with_logits(logits, labels.float(), of_labels)
            else:
                outputs["loss"] = cross_entropy(logits, labels, of_classes, reduction="sum") / len(labels)
        return outputs

    model.forward = weighted
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)


def weights_by_label(weights: Tensor | None, labels: Sequence[str]) -> dict[str, float]:
    """Return the weight of the rows of each class, or of those that have each label; empty for None."""
    if weights is None:
        return {}
    of_rows = weights[1] if weights.dim() == 2 else weights
    return dict(zip(labels, of_rows.tolist(), strict=True))


def rare_class_hint(counts: Mapping[str, int], *, weighted: bool, rows_with_sets: int = 0) -> str:
    """Return a line about classes with few rows; ``""`` if there are none.

    Args:
        counts: training rows of each class.
        weighted: whether the loss has weights of the classes already.
        rows_with_sets: number of rows, if each has a set of labels; the even part of a label is half of them.
    """
    rows = rows_with_sets or sum(counts.values())
    even = rows / 2 if rows_with_sets else rows / len(counts)
    rare = sorted((label for label in counts if counts[label] < RARE * even), key=lambda label: counts[label])
    if not rare or weighted:
        return ""
    shown = ", ".join(f"{label!r} {counts[label]:,}" for label in rare[:5]) + (", ..." if len(rare) > 5 else "")
    verb = "class is" if len(rare) == 1 else "classes are"
    return (
        f"hint: {len(rare)} {verb} rare among {rows:,} rows ({shown}): a model may never predict what it rarely sees; "
        "--class-weights balanced gives every class the same weight in the loss"
    )


def never_predicted_hint(labels: Sequence[str], truth: Sequence[int], predicted: Sequence[int]) -> str:
    """Return a line about classes that occur but are never predicted; ``""`` if there are none."""
    occurring, given = Counter(truth), set(predicted)
    never = [index for index in sorted(occurring) if index not in given]
    if not never:
        return ""
    shown = ", ".join(f"{labels[index]!r} {occurring[index]:,}" for index in never[:5]) + ", ..." * (len(never) > 5)
    verb = "class is" if len(never) == 1 else "classes are"
    rows = sum(occurring[index] for index in never)
    return (
        f"hint: {len(never)} {verb} never predicted in {rows:,} rows of {len(truth):,} ({shown}): train for more "
        "epochs, or with --class-weights balanced"
    )
