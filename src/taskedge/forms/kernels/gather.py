"""The portable CPU kernel: every entry's column of X times its row of dY, a few tokens at a time.

It computes the products that the chosen entries need and no others, in plain torch: no compiler to load, and a buffer
that stays in the processor's cache. Where every neuron has many entries, the thin product is faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.forms.kernels import CPU_DTYPES, KERNELS, EntryIndex, sum_dtype

BUFFER_PRODUCTS = 98_304
"""Products at a time: 400 kB (measured best for 1,000 to 4,000 neurons on x86)."""

MIN_TOKENS, MAX_TOKENS = 16, 256
"""Limits of the tokens at a time."""

PRODUCT_COST = 50
"""Time of one gathered product, in products of a matrix product (50 to 80 on one x86 core)."""


class Gather:
    """``Σ_t X[t, columns] * dY[t, rows]``, summed in float32 (float64 for float64)."""

    def supports(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        """Return whether the tensors are on the CPU and a thin product would cost more."""
        if grad_output.device.type != "cpu" or grad_output.dtype not in CPU_DTYPES:
            return False
        return len(index.rows) * PRODUCT_COST <= index.out_features * columns.shape[1]

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """Sum a few tokens at a time; see :class:`Kernel`."""
        dtype = sum_dtype(grad_output.dtype)
        sums = []
        for part in index.passes:
            total = torch.zeros(len(part.columns), dtype=dtype)
            tokens = min(max(BUFFER_PRODUCTS // max(len(part.columns), 1), MIN_TOKENS), MAX_TOKENS)
            for start in range(0, len(columns), tokens):
                x, dy = columns[start : start + tokens], grad_output[start : start + tokens]
                if part.rows is not None:
                    dy = dy.index_select(1, part.rows)
                total += x.index_select(1, part.columns).to(dtype).mul_(dy).sum(0)
            sums.append(total)
        return index.join(sums, dtype)


KERNELS.add("gather", Gather())
