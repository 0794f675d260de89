"""The loss of a step that takes several passes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import loss_of, run_batch
from taskedge.backbone.label_loss import IGNORED_LABEL
from taskedge.training.memory.micro_batch import count_labels, shifts_labels

Batch = Mapping[str, Any]


class PassesLoss:
    """Loss of each pass of a step, weighted so that the losses of all passes sum to the mean over the step's labels.

    Losses of causal language models divide by a number of labels that they are given. Losses of other models are means
    over their batch. Weights matter because parts differ: the last batch of an epoch has fewer rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._takes_count = shifts_labels(model) and _accepts_loss_kwargs(model)
        self._num_labels = 0

    def begin_step(self, batches: Sequence[Batch]) -> None:
        """Count the labels of a step."""
        count = _count_shifted_labels if self._takes_count else count_labels
        self._num_labels = sum(map(count, batches))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of one of the step's batches."""
        if self._takes_count:
            num_labels = torch.tensor(float(self._num_labels))
            return loss_of(run_batch(self._model, {**batch, "num_items_in_batch": num_labels}))
        return loss_of(run_batch(self._model, batch)) * (count_labels(batch) / self._num_labels)


def _accepts_loss_kwargs(model: nn.Module) -> bool:
    """Return whether the model's ``forward`` takes ``num_items_in_batch`` for its loss."""
    declared = getattr(model, "accepts_loss_kwargs", None)
    if declared is not None:
        return bool(declared)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _count_shifted_labels(batch: Batch) -> int:
    """Return the number of tokens that a causal language model predicts; its loss has no prediction of the first."""
    return int((batch["labels"][..., 1:] != IGNORED_LABEL).sum())
