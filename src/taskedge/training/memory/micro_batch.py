"""Micro-batches: a step's rows pass through the model in parts, and the gradient is that of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taskedge.training.generation import IGNORED


def counted(batch: Mapping[str, Any]) -> int:
    """How many labels a mean loss over the batch counts: its weight beside other parts of the step.

    Parts of a step weigh by what they hold and not all the same: the last part of an epoch has fewer rows.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return len(next(iter(batch.values())))
    return labels.numel() if labels.is_floating_point() else int((labels != IGNORED).sum())


def shifts_labels(model: nn.Module) -> bool:
    """Whether it is a causal language model: its loss shifts labels by one, and divides by their number if told it."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    if outputs is None or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(model, "loss_function", None) is ForCausalLMLoss
