"""The kernel that supports every device and dtype: a thin product over the stored columns, then a gather.

If every neuron has an entry in every stored column, as with few columns chosen for all neurons, the product itself is
the result.
"""

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
        product = columns.t() @ grad_output  # [m, out]; on a CPU several times as fast as its transpose
        is_whole = len(index.rows) == product.numel()  # entries are distinct and sorted: these are all, in order
        entries = product.t().flatten() if is_whole else product[index.columns, index.rows]
        return entries if entries.dtype == torch.float64 else entries.float()


KERNELS.add("thin", Thin())
