"""Hard concrete gates: random numbers in [0, 1] that are exactly 0 or 1 with positive probability.

A gate with the parameter alpha draws ``z = min(1, max(0, s·(r - l) + l))`` with
``s = sigmoid(log u - log(1 - u) + alpha)`` and u uniform in (0, 1). Everything here is a function of u, so a gate that
is drawn twice from one u is the same.

Source: Louizos et al. (arXiv 1712.01312); as diff pruning uses them (arXiv 2012.07463).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNIFORM_MARGIN = 1e-4
"""u is kept within this distance of 0 and of 1. Source: the published code of diff pruning."""


@dataclass(frozen=True)
class HardConcrete:
    """The interval ``[low, high]`` to which gates are stretched before they are cut at 0 and 1.

    Attributes:
        low, high: l < 0 and r > 1; -1.5 and 1.5 in diff pruning.
    """

    low: float = -1.5
    high: float = 1.5

    @property
    def shift(self) -> float:
        """``log(-l/r)``: a gate is not 0 with probability ``sigmoid(alpha - shift)``."""
        return math.log(-self.low / self.high)

    def gate(self, alpha: Tensor, u: Tensor) -> Tensor:
        """Return z for each alpha and u of the same shape."""
        return (self._opening(alpha, u) * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def gate_and_slope(self, alpha: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and dz/dalpha at fixed u: ``(r - l)·s·(1 - s)`` strictly inside (0, 1), else 0."""
        s = self._opening(alpha, u)
        stretched = s * (self.high - self.low) + self.low
        slope = s * (1 - s) * (self.high - self.low)
        return stretched.clamp(0.0, 1.0), slope.masked_fill((stretched <= 0) | (stretched >= 1), 0.0)

    def nonzero_probability(self, alpha: Tensor) -> Tensor:
        """Return ``P(z > 0) = sigmoid(alpha - shift)``."""
        return torch.sigmoid(alpha - self.shift)

    def nonzero_slope(self, alpha: Tensor) -> Tensor:
        """Return the derivative of :meth:`nonzero_probability`."""
        probability = self.nonzero_probability(alpha)
        return probability * (1 - probability)

    @staticmethod
    def _opening(alpha: Tensor, u: Tensor) -> Tensor:
        """Return s, in (0, 1)."""
        return torch.sigmoid(torch.log(u) - torch.log1p(-u) + alpha)


def uniform_like(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Return u for each alpha, drawn on the CPU: the same numbers on every device."""
    u = torch.rand(alpha.shape, generator=generator, dtype=torch.float32)
    return u.clamp_(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN).to(device=alpha.device, dtype=alpha.dtype)
