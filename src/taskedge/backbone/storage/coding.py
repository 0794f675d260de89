"""The codings of a weight by name: what a frozen layer stores, and the weight that it computes with.

A delta that was trained over coded weights names the coding as the dtype of its base, and its digests cover the values
that the codes stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.backbone.layers import Linear, LinearAdapter
from taskedge.backbone.storage.int4 import INT4, dequantize_int4, quantize_int4
from taskedge.backbone.storage.int8 import INT8, dequantize, quantize

CODINGS = (INT8, INT4)
"""Weight storages that replace a weight by codes."""


def encode(weight: Tensor, adapter: LinearAdapter, coding: str) -> tuple[Tensor, Tensor]:
    """Return the codes of a weight and their scales, as :func:`decode` takes them."""
    return quantize_int4(weight, adapter) if coding == INT4 else quantize(weight, adapter)


def decode(
    codes: Tensor, scale: Tensor, coding: str, shape: tuple[int, int], adapter: LinearAdapter, dtype: torch.dtype
) -> Tensor:
    """Return the weight that codes stand for, as its layer stores it.

    Args:
        codes: from :func:`encode`.
        scale: from :func:`encode`.
        coding: one of :data:`CODINGS`.
        shape: (out, in) of the weight.
        adapter: of the layer.
        dtype: of the result.
    """
    if coding == INT4:
        return dequantize_int4(codes, scale, shape[1], adapter, dtype)
    return dequantize(codes, scale, dtype)


def rounded_weight(linear: Linear, coding: str) -> Tensor:
    """Return the weight [out, in] that a linear would have if it were stored as codes; the linear is not changed."""
    assert isinstance(linear.adapter, LinearAdapter)
    stored = linear.stored
    codes, scale = encode(stored, linear.adapter, coding)
    return linear.adapter.matrix(decode(codes, scale, coding, linear.shape, linear.adapter, stored.dtype))
