"""Gates that are 0 or 1 in the forward pass and have a gradient: straight-through.

A gate is 1 if the sigmoid of its logit is above one half, and its gradient is that of the sigmoid. Source: the form of
InterroGate's gates as far as public reviews of it (arXiv 2402.16848) name it; start and rates are this project's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

START = 0.5
"""Logit of a gate before training: open."""


class _Gate(torch.autograd.Function):
    """0 or 1 by the sign of the logit; the gradient is that of the sigmoid."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        soft = logits.sigmoid()
        slope: Tensor = gradients[0] * soft * (1 - soft)
        return slope


class _ValueOf(torch.autograd.Function):
    """A number that is computed in one way and has the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, differentiable: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def hard_gates(logits: Tensor) -> Tensor:
    """Return 1 where the sigmoid of the logits is above one half and 0 elsewhere, with the gradient of the sigmoid."""
    gates: Tensor = _Gate.apply(logits)  # type: ignore[no-untyped-call]
    return gates


def value_with_gradient(value: Tensor, differentiable: Tensor) -> Tensor:
    """Return ``value``, with the gradient of ``differentiable``."""
    result: Tensor = _ValueOf.apply(value, differentiable)  # type: ignore[no-untyped-call]
    return result
