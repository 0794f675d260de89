"""Norms while something else trains: their parameters, and running statistics that a pass must not change.

A norm over the batch keeps running means and variances, and every training pass moves them. They are no parameters, so
a delta would not have them, and the base would not be restored. :func:`fix_statistics` lets such norms use their
running statistics in training as in inference.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from taskedge.backbone.by_name import modules_named
from taskedge.backbone.class_swap import restore_class, swap_class

STATISTICS = ("running_mean", "running_var")
"""Buffers of a norm that a task may have of its own. The count of batches is none: no output depends on it."""


class FixedStatistics(nn.Module):
    """A norm that uses its running statistics and never changes them, in training as in inference."""

    keeps_forward = True

    def train(self, mode: bool = True) -> Self:
        """Stay in inference mode."""
        return super().train(False)


def fix_statistics(model: nn.Module) -> None:
    """Let every norm with running statistics use them unchanged, until :func:`release_statistics`."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats and not isinstance(module, FixedStatistics):
            swap_class(module, FixedStatistics, "Fixed")
            module.eval()


def release_statistics(model: nn.Module) -> None:
    """Give the norms of :func:`fix_statistics` their class back, in the mode of the model."""
    for module in model.modules():
        if isinstance(module, FixedStatistics):
            restore_class(module)
            module.train(model.training)


def norm_parameters(model: nn.Module) -> list[str]:
    """Return the names of the weights and biases of all norms, whatever their class."""
    return [name for owner, module in _norms(model) for name in _names(owner, module._parameters)]


def norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of all norms that have some, by buffer name."""
    return {
        name: module.get_buffer(name.rpartition(".")[2])
        for owner, module in _norms(model)
        for name in _names(owner, module._buffers)
        if name.endswith(STATISTICS)
    }


def _norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that are norms by name of their class (``LayerNorm``, ``LlamaRMSNorm``, ``BatchNorm2d``)."""
    return [(name, module) for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]


def _names(owner: str, tensors: dict[str, Any]) -> list[str]:
    return [f"{owner}.{leaf}".removeprefix(".") for leaf, tensor in tensors.items() if tensor is not None]


def statistics_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return those of the named running statistics that the model has."""
    found = {}
    for name in names:
        if name.endswith(STATISTICS):
            owner, _, leaf = name.rpartition(".")
            buffer = modules_named(model, [owner]).get(owner, nn.Module())._buffers.get(leaf)
            if buffer is not None:
                found[name] = buffer
    return found
