"""Asymmetric int4 codes of a weight: 4 bits per weight, a scale and an offset per group of 32 inputs of a neuron.

The values are those of GGUF's type Q4_1. Group and asymmetry were chosen by measured error
(``benchmarks/memory/int4_base.py``).

Source: round to nearest by group, as in LLM.int8() (arXiv 2208.07339, section 2) for smaller blocks; two codes a byte:
this project. torch's ``_weight_int4pack_mm_for_cpu``, which torchao uses, has no backward pass and keeps no entries
beside the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.backbone.layers import LinearAdapter

INT4 = "int4"
GROUP = 32
"""Inputs that share a scale and an offset. Files of deltas depend on it: another one needs another name."""
NUM_STEPS = 15
"""Steps from the least to the largest code."""


def quantize_int4(weight: Tensor, adapter: LinearAdapter, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Return the int4 codes of a weight, and what they are multiplied by and added to; the same bits on every machine.

    A code is the nearest of 16 even steps from the group's least weight to its largest one.

    Args:
        weight: as its layer stores it, finite.
        adapter: of the layer.
        group: inputs that share a scale; those of a neuron that are left over make a smaller group.

    Returns:
        uint8 [out, groups, group / 2], two codes a byte, and float16 [2, out, groups]: scales and offsets.
    """
    matrix = adapter.matrix(weight.detach()).float()
    out, inputs = matrix.shape
    left_over = -inputs % group
    if left_over:  # by copies of the last input, which change neither the least nor the largest of its group
        matrix = torch.cat([matrix, matrix[:, -1:].expand(out, left_over)], 1)
    groups = matrix.reshape(out, -1, group)
    least, largest = groups.amin(2), groups.amax(2)
    scale = ((largest - least) / NUM_STEPS).half()
    offset = least.half()
    steps = scale.float().clamp_min(torch.finfo(torch.float16).tiny)[..., None]  # a group may be all alike
    codes = ((groups - offset.float()[..., None]) / steps).round_().clamp_(0, NUM_STEPS).to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, torch.stack([scale, offset])


def dequantize_int4(packed: Tensor, scales: Tensor, inputs: int, adapter: LinearAdapter, dtype: torch.dtype) -> Tensor:
    """Return the weight that codes stand for, as its layer stores it.

    Args:
        packed: uint8 [out, groups, group / 2].
        scales: [2, out, groups].
        inputs: of a neuron.
        adapter: of the layer.
        dtype: of the result.
    """
    out, groups, half = packed.shape
    codes = torch.empty(out, groups, half, 2)
    if packed.device != codes.device:
        codes = codes.to(packed.device)
    codes[..., 0], codes[..., 1] = packed & NUM_STEPS, packed >> 4
    scale, offset = scales.float()[..., None]
    values = codes.view(out, groups, 2 * half).mul_(scale).add_(offset).view(out, -1)
    matrix = values[:, :inputs].to(dtype) if values.shape[1] != inputs else values.to(dtype)
    return adapter.matrix(matrix).contiguous()
