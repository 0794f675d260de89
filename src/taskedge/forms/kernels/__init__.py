"""Kernels for the one product that sparse training adds to a frozen model: the chosen entries of dW.

``g[e] = Σ_t dY[t, row_e] · X[t, column_e]`` for every chosen entry e, and for no other. A kernel is one file and one
registration; which one runs is decided per call from what the tensors are, or by :func:`using` for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from taskedge.registry import Registry


@dataclass(frozen=True)
class Pass:
    """Entries that a kernel can walk through at once."""

    where: Tensor
    """int64 [k]: their places among all entries."""
    rows: Tensor | None
    """int64 [k]; None where they are all the rows of the weight in order, one entry each."""
    columns: Tensor
    """int64 [k], into the stored columns."""


class EntryIndex:
    """Where the chosen entries of one linear sit: output rows, and columns among the stored columns of the input.

    Attributes:
        rows: int64 [n], ascending.
        columns: int64 [n], into the columns [tokens, m] that were stored, not into the whole input.
        out: rows of the weight.
    """

    def __init__(self, rows: Tensor, columns: Tensor, out: int) -> None:
        self.rows, self.columns, self.out = rows, columns, out

    def to(self, device: torch.device) -> EntryIndex:
        """The same index on ``device``; itself where it is there already."""
        if self.rows.device == device:
            return self
        return EntryIndex(self.rows.to(device), self.columns.to(device), self.out)

    @cached_property
    def even(self) -> int:
        """How many entries every row has at least: the part that needs no row index."""
        return int(torch.bincount(self.rows, minlength=self.out).min()) if self.out else 0

    @cached_property
    def rank(self) -> Tensor:
        """int64 [n]: the place of each entry in its row, 0 for a row's first."""
        counts = torch.bincount(self.rows, minlength=self.out)
        first = counts.cumsum(0) - counts
        return torch.arange(len(self.rows), device=self.rows.device) - first[self.rows]

    @cached_property
    def passes(self) -> list[Pass]:
        """All entries: the even part row by row, so that dY is read as it lies, then what is left."""
        found = []
        for rank in range(self.even):
            where = (self.rank == rank).nonzero().flatten()
            found.append(Pass(where, None, self.columns[where]))
        rest = (self.rank >= self.even).nonzero().flatten()
        return found + [Pass(rest, self.rows[rest], self.columns[rest])] * bool(len(rest))

    def joined(self, sums: list[Tensor], dtype: torch.dtype) -> Tensor:
        """[n] of that dtype, in the order of the entries, from what each of the :attr:`passes` gave."""
        if len(sums) == 1:  # its entries are in order: one for every row, or none of the rows is even
            return sums[0]
        whole = torch.empty(len(self.rows), dtype=dtype)
        for one, part in zip(self.passes, sums, strict=True):
            whole[one.where] = part
        return whole


class Kernel(Protocol):
    """A way to compute the gradient of the chosen entries."""

    def serves(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> bool:
        """Whether it can run on these tensors here and is of use; says no rather than failing."""
        ...

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """grad_output [tokens, out] and columns [tokens, m] of one dtype -> float32 [n] (float64 for float64)."""
        ...


KERNELS: Registry[Kernel] = Registry("kernel", __name__)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What kernels for the CPU take."""


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of that dtype are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_BY_SPEED = ("numba", "gather", "thin")
_forced: ContextVar[str | None] = ContextVar("taskedge_kernel", default=None)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Runs the kernel of that name inside the block, or the next slower one where it cannot serve."""
    KERNELS[name]
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Kernel:
    """The fastest kernel that can serve; of those from the forced one on, where one is forced."""
    forced = _forced.get()
    if forced in _BY_SPEED:
        names = _BY_SPEED[_BY_SPEED.index(forced) :]
    else:
        names = (forced, *_BY_SPEED) if forced else _BY_SPEED
    for name in names:
        kernel = KERNELS[name]
        if kernel.serves(grad_output, columns, index):
            return kernel
    raise AssertionError("the thin kernel serves every tensor")


def entry_gradient(grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
    """The chosen entries of ``dYᵀX``: grad_output [tokens, out], columns [tokens, m] -> float32 or float64 [n]."""
    return choose(grad_output, columns, index)(grad_output, columns, index)
