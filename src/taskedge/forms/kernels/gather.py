"""The portable CPU kernel: every entry's column of X beside its row of dY, a few tokens at a time.

It multiplies and adds what the chosen entries need and no more, in plain torch: no compiler to load, and a buffer that
stays in the processor's cache. Where every neuron has many entries, the thin product is the faster one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.forms.kernels import DTYPES, KERNELS, EntryIndex, sum_dtype

BUFFER = 98_304
"""Products at a time: so many tokens that they fill 400 kB (measured best for 1 to 4 thousand neurons on x86)."""

LEAST, MOST = 16, 256
"""Tokens at a time."""

CROSSOVER = 50
"""One gathered product takes as long as so many in a matrix product (50 to 80 on one x86 core)."""


class Gather:
    """``Σ_t X[t, columns] * dY[t, rows]``, summed in float32 (float64 for float64)."""

    def serves(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        if grad_output.device.type != "cpu" or grad_output.dtype not in DTYPES:
            return False
        return len(index.rows) * CROSSOVER <= index.out * columns.shape[1]

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        precise = sum_dtype(grad_output.dtype)
        sums = []
        for one in index.passes:
            total = torch.zeros(len(one.columns), dtype=precise)
            tokens = min(max(BUFFER // max(len(one.columns), 1), LEAST), MOST)
            for first in range(0, len(columns), tokens):
                x, dy = columns[first : first + tokens], grad_output[first : first + tokens]
                dy = dy if one.rows is None else dy.index_select(1, one.rows)
                total += x.index_select(1, one.columns).to(precise).mul_(dy).sum(0)
            sums.append(total)
        return index.joined(sums, precise)


KERNELS.add("gather", Gather())
