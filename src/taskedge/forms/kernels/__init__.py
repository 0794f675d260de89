"""Kernels for the one product that sparse training adds to a frozen model: the chosen entries of dW.

``g[e] = Σ_t dY[t, row_e] · X[t, column_e]`` for every chosen entry e, and for no other. A kernel is one module and one
registration. Every call runs the fastest kernel that supports its tensors, unless :func:`force_kernel` names another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from taskedge.registry import Registry

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EntryPass:
    """Entries that a kernel walks through in one go.

    Attributes:
        where: int64 [k], their indices among all entries.
        rows: int64 [k]; None if they are all the rows of the weight in order, one entry each.
        columns: int64 [k], into the stored columns.
    """

    where: Tensor
    rows: Tensor | None
    columns: Tensor

    @cached_property
    def arrays(self) -> tuple[Array | None, Array]:
        """Rows and columns as int32 arrays, for compiled kernels."""
        return None if self.rows is None else self.rows.int().numpy(), self.columns.int().numpy()


class EntryIndex:
    """Where the chosen entries of one linear are: output rows, and columns among the stored columns of the input.

    Attributes:
        rows: int64 [n], ascending.
        columns: int64 [n], into the columns [tokens, m] that were stored, not into the whole input.
        out_features: rows of the weight.
    """

    def __init__(self, rows: Tensor, columns: Tensor, out_features: int) -> None:
        self.rows, self.columns, self.out_features = rows, columns, out_features

    def to(self, device: torch.device) -> EntryIndex:
        """Return the same index on ``device``; itself if it is there already."""
        if self.rows.device == device:
            return self
        return EntryIndex(self.rows.to(device), self.columns.to(device), self.out_features)

    @cached_property
    def passes(self) -> list[EntryPass]:
        """All entries, in passes that a kernel can sum one after the other.

        First one pass for each entry that every row has: it needs no row index, and reads dY contiguously. The entries
        beyond those, if any, are the last pass.
        """
        counts = torch.bincount(self.rows, minlength=self.out_features)
        first_of_row = counts.cumsum(0) - counts
        rank = torch.arange(len(self.rows), device=self.rows.device) - first_of_row[self.rows]  # 0 for a row's first
        in_every_row = int(counts.min()) if self.out_features else 0
        passes = []
        for number in range(in_every_row):
            where = (rank == number).nonzero().flatten()
            passes.append(EntryPass(where, None, self.columns[where]))
        rest = (rank >= in_every_row).nonzero().flatten()
        if len(rest):
            passes.append(EntryPass(rest, self.rows[rest], self.columns[rest]))
        return passes

    def join(self, sums: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Return [n] in ``dtype``, in the order of the entries, from the sums of each of the :attr:`passes`."""
        if len(sums) == 1:  # its entries are in order: one for every row, or no entry that every row has
            return sums[0]
        joined = torch.empty(len(self.rows), dtype=dtype)
        for part, part_sums in zip(self.passes, sums, strict=True):
            joined[part.where] = part_sums
        return joined


class Kernel(Protocol):
    """A way to compute the gradient of the chosen entries."""

    def supports(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        """Return whether the kernel can run on these tensors here and is worth running; never raises."""
        ...

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """Map grad_output [tokens, out] and columns [tokens, m] of one dtype to float32 [n] (float64 for float64)."""
        ...


KERNELS: Registry[Kernel] = Registry("kernel", __name__)

CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes that kernels for the CPU take."""

_FASTEST_FIRST = ("numba", "gather", "thin")
_forced: ContextVar[str | None] = ContextVar("taskedge_kernel", default=None)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that products of ``dtype`` are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def force_kernel(name: str) -> Iterator[None]:
    """Run the kernel ``name`` within the ``with`` block, or the next slower one where it does not support the tensors.

    Raises:
        UnknownName: there is no kernel of that name.
    """
    KERNELS[name]
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose_kernel(grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Kernel:
    """Return the fastest kernel that supports the tensors; with a forced kernel, that one or the next slower one."""
    names: tuple[str, ...] = _FASTEST_FIRST
    forced = _forced.get()
    if forced in names:
        names = names[names.index(forced) :]
    elif forced:
        names = (forced, *names)
    for name in names:
        kernel = KERNELS[name]
        if kernel.supports(grad_output, columns, index):
            return kernel
    raise AssertionError("the thin kernel supports every tensor")


def entry_gradient(grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
    """Return the chosen entries of ``dYᵀX``, [n] in float32 (float64 for float64).

    Args:
        grad_output: dY [tokens, out].
        columns: stored columns of X [tokens, m], in the same dtype.
        index: rows and stored columns of the entries.
    """
    return choose_kernel(grad_output, columns, index)(grad_output, columns, index)
