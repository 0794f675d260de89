"""The kernel that supports every device and dtype: a thin product over the stored columns, then a gather."""

from __future__ import annotations

import torch
from torch import Tensor

from taskedge.forms.kernels import KERNELS, EntryIndex


class Thin:
    """``(XᵀdY)[column, row]``: m/in of a dense weight gradient, and no larger than [m, out] at any time."""

    def supports(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        """Return True."""
        return True

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """Multiply, then gather; see :class:`Kernel`."""
        product = columns.t() @ grad_output  # [m, out]
        entries = product[index.columns, index.rows]
        return entries if entries.dtype == torch.float64 else entries.float()


KERNELS.add("thin", Thin())
