"""Weights of classes in the training loss, and hints about classes that are rare or never predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskedge.errors import InputError

RARE = 0.2
"""Share of its even part (rows / classes) below which a class is called rare."""


def balanced_weights(indices: Sequence[int], labels: Sequence[str]) -> Tensor:
    """Return the weight of each class, ``rows / (classes · rows of the class)``, float32 [classes].

    The mean weight of a row is 1, so that rates keep their meaning.

    Raises:
        InputError: a class has no row.
    """
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
            outputs["loss"] = cross_entropy(logits, labels, weights.to(logits.device), reduction="sum") / len(labels)
        return outputs

    model.forward = weighted
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)


def rare_class_hint(counts: Mapping[str, int], *, weighted: bool) -> str:
    """Return a line about classes with few rows; ``""`` if there are none.

    Args:
        counts: training rows of each class.
        weighted: whether the loss has weights of the classes already.
    """
    rows = sum(counts.values())
    rare = sorted(
        (label for label in counts if counts[label] < RARE * rows / len(counts)), key=lambda label: counts[label]
    )
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
    shown = ", ".join(f"{labels[index]!r} ({occurring[index]:,})" for index in never[:5])
    verb = "class is" if len(never) == 1 else "classes are"
    return (
        f"hint: {len(never)} {verb} never predicted ({shown + (', ...' if len(never) > 5 else '')} rows): train for "
        "more epochs, or with --class-weights balanced"
    )
