"""The kernel that always serves: a thin product over the stored columns, then a gather. Any device, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.forms.kernels import KERNELS, EntryIndex


class Thin:
    """``(XᵀdY)[column, row]``: m/in of a dense weight gradient, and no larger than [m, out] at any time."""

    def serves(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        return True

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        product = columns.t() @ grad_output  # (m, out)
        entries = product[index.columns, index.rows]
        return entries if entries.dtype == torch.float64 else entries.float()


KERNELS.add("thin", Thin())
