"""Symmetric int8 codes of a weight: 8 bits per weight and one float32 scale per neuron.

Source: absolute-maximum quantization per output channel, as in LLM.int8() (arXiv 2208.07339, section 2), of weights
only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.backbone.layers import LinearAdapter

INT8 = "int8"
LEVELS = 127
"""Steps on either side of zero."""


def quantize(weight: Tensor, adapter: LinearAdapter) -> tuple[Tensor, Tensor]:
    """Return int8 codes of ``weight`` (as its layer stores it, finite) and the scale of each neuron, float32.

    A code is the nearest of 255 even steps between ± the neuron's largest weight; the same bits on every machine.
    """
    weight = weight.detach().float()
    largest = torch.linalg.vector_norm(weight, torch.inf, dim=0 if adapter.transposed else 1, keepdim=True)
    scale = (largest / LEVELS).clamp_min_(torch.finfo(torch.float32).tiny)  # a neuron may be all zeros
    return (weight / scale).round_().to(torch.int8), scale


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight that ``codes`` stand for."""
    return codes.float().mul_(scale).to(dtype)
