"""A small network of two linears with heads for three tasks, for the tests of gated features."""

from __future__ import annotations

import torch
from torch import nn

from taskedge.training.many.feature_gates import FeatureGates

INPUTS, WIDTH, CLASSES = 12, 10, (2, 2, 5)


def trunk(seed: int = 0) -> nn.Module:
    """Return two linears with ReLU."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())


def heads() -> list[nn.Module]:
    """Return a head for each task."""
    torch.manual_seed(9)
    return [nn.Linear(WIDTH, classes) for classes in CLASSES]


def gated(seed: int = 0) -> FeatureGates:
    """Return gated networks in which every stream has weights of its own, and gates and mixture are random."""
    model = FeatureGates(trunk(), heads())
    for task in range(len(CLASSES)):
        model.start_from(task, trunk(task + 1))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers.values():
            layer.alpha.copy_(torch.randn(layer.alpha.shape, generator=draw))
            layer.beta.copy_(torch.randn(layer.beta.shape, generator=draw))
    return model


def inputs(rows: int = 7, seed: int = 3) -> torch.Tensor:
    """Return random inputs."""
    return torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(seed))


def set_gates(model: FeatureGates, open_: bool) -> None:
    """Open or close all gates."""
    with torch.no_grad():
        for alpha in model.alphas:
            alpha.fill_(1.0 if open_ else -1.0)
