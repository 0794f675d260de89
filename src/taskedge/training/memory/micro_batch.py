"""Micro-batches: the rows of a step pass through the model in parts, and the gradient equals that of the whole step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taskedge.training.generation import IGNORED


def count_labels(batch: Mapping[str, Any]) -> int:
    """Return the number of labels over which a batch's loss is a mean: its weight among the parts of a step.

    Parts are weighted because they differ: the last part of an epoch has fewer rows.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return len(next(iter(batch.values())))
    return labels.numel() if labels.is_floating_point() else int((labels != IGNORED).sum())


def shifts_labels(model: nn.Module) -> bool:
    """Return whether ``model`` is a causal language model.

    The loss of such a model shifts the labels by one position, and divides by a number of labels that is passed to it.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    if outputs is None or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(model, "loss_function", None) is ForCausalLMLoss
