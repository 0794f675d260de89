"""Many answers into one change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def weighted_mean(answers: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Per entry the mean over the answers that hold it, weighted; in the order given.

    All devices train one support, so entry i of a tensor is the same weight everywhere and the mean of the entries is
    the entry of the mean: exact, unlike averaged factors of a low-rank product.

    Args:
        answers: (weight above 0, tensors by name) of every device.

    Returns:
        float64 tensors, one for each name that any answer holds.
    """
    total: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for weight, tensors in answers:
        for name, tensor in tensors.items():
            part = weight * tensor.double()
            total[name] = total[name] + part if name in total else part
            weights[name] = weights.get(name, 0.0) + weight
    return {name: tensor / weights[name] for name, tensor in total.items()}


def clipped(gradients: dict[str, Tensor], most: float) -> tuple[dict[str, Tensor], float]:
    """The gradients scaled so that their common l2 norm is at most ``most`` (0: no limit), and that norm before."""
    norm = float(torch.stack([tensor.double().square().sum() for tensor in gradients.values()]).sum().sqrt())
    if not most or norm <= most:
        return gradients, norm
    return {name: tensor * (most / norm) for name, tensor in gradients.items()}, norm
