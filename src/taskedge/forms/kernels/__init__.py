"""Kernels for the one product that sparse training adds to a frozen model: the chosen entries of dW.

``g[e] = Σ_t dY[t, row_e] · X[t, column_e]`` for every chosen entry e, and for no other. A kernel is one file and one
registration; which one runs is decided per call from what the tensors are, or by :func:`using` for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from taskedge.registry import Registry


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


class Kernel(Protocol):
    """A way to compute the gradient of the chosen entries."""

    def serves(self, grad_output: Tensor, columns: Tensor) -> bool:
        """Whether it can run on these tensors here; says no rather than failing."""
        ...

    def __call__(self, grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
        """grad_output [tokens, out] and columns [tokens, m] of one dtype -> float32 [n] (float64 for float64)."""
        ...


KERNELS: Registry[Kernel] = Registry("kernel", __name__)

_BY_SPEED = ("numba", "thin")
_forced: ContextVar[str | None] = ContextVar("taskedge_kernel", default=None)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Runs the kernel of that name inside the block, wherever it can serve."""
    KERNELS[name]
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(grad_output: Tensor, columns: Tensor) -> Kernel:
    """The forced kernel if it can serve, else the fastest that can."""
    forced = _forced.get()
    for name in (forced, *_BY_SPEED) if forced else _BY_SPEED:
        kernel = KERNELS[name]
        if kernel.serves(grad_output, columns):
            return kernel
    raise AssertionError("the thin kernel serves every tensor")


def entry_gradient(grad_output: Tensor, columns: Tensor, index: EntryIndex) -> Tensor:
    """The chosen entries of ``dYᵀX``: grad_output [tokens, out], columns [tokens, m] -> float32 or float64 [n]."""
    return choose(grad_output, columns)(grad_output, columns, index)
