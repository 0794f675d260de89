"""Running a model on batches: evaluation mode for a while, batches moved to its device, the loss in its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.errors import InputError


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Restore on exit whether each module is in training or evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside the block, and restore each module's mode on exit."""
    with modes_restored(model):
        model.eval()
        yield


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Return the model's output for a batch.

    Args:
        model: any module with parameters.
        batch: keyword arguments (a mapping), positional arguments (a tuple or list), or one tensor. Its tensors are
            moved to the device of the model's first parameter.
    """
    device = next(model.parameters()).device
    if isinstance(batch, Mapping):
        return model(**{key: _moved(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        return model(*(_moved(value, device) for value in batch))
    return model(_moved(batch, device))


def loss_of(output: Any) -> Tensor:
    """Return the scalar loss in a model's output: its item or attribute ``loss``, or the output, if it is a scalar.

    Raises:
        InputError: there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("the model returned no loss, and its gradient is needed: put labels into the batches")
    return loss


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
