"""Sparse LoRA: ``W + M∘(BA)·alpha/r``, the offsets of the chosen entries taken from a product of two thin factors.

``offset[e] = alpha/r·Σ_k B[row_e, k]·A[k, column_e]``, gathered at the entries: neither the product nor a mask is ever
made. Everything else, from writing into the weight to the delta, is shared with the sparse form.

Source: TaskEdge (arXiv 2504.03718) names sparse low-rank adaptation; this project for the mask on the product and for
the gather.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskedge.backbone.layers import Linear
from taskedge.forms.entries import Entries, MakeEntries, SharedInput
from taskedge.forms.form_registry import form
from taskedge.forms.low_rank import Factors
from taskedge.selection.support import LayerSupport

CHUNK_NUMBERS = 2**20
"""How many numbers of the entries' factors are gathered at a time, however many entries there are."""


@form("sparse_lora", factored=True)
def sparse_lora(rank: int, factors: Factors) -> MakeEntries:
    """Make entries that share a low-rank product."""
    return partial(LowRankEntries, rank=rank, factors=factors)


class _Computed(NamedTuple):
    """Offsets, and copies of the factors that they were computed from."""

    a: Tensor
    b: Tensor
    offsets: Tensor


class LowRankEntries(Entries):
    """The entries of one linear, whose offsets are the entries of ``scale·BA``.

    Attributes:
        a: float32 [rank, in], trained.
        b: float32 [out, rank], trained; zeros at first.
        scale: alpha/r.
    """

    def __init__(
        self,
        linear: Linear,
        support: LayerSupport,
        shared_input: SharedInput,
        step: Tensor | None,
        *,
        rank: int,
        factors: Factors,
    ) -> None:
        super().__init__(linear, support, shared_input, step)
        self.a, self.b = factors.draw(rank, support.shape, self.rows.device)
        self.scale = factors.scale(rank)
        self._computed: _Computed | None = None

    def current_offsets(self) -> Tensor:
        """Return the entries of the product, connected to A and B if gradients are enabled."""
        offsets = self._compute_offsets()
        if not torch.is_grad_enabled():
            return offsets
        return cast(
            Tensor,
            _Gather.apply(self.a, self.b, offsets, self.rows, self.columns, self.scale),  # type: ignore[no-untyped-call]
        )

    def _compute_offsets(self) -> Tensor:
        """Return float32 [n] without gradient; computed only if the content of A or B changed since the last time."""
        a, b = self.a.detach(), self.b.detach()
        if self._computed is None or not (torch.equal(self._computed.a, a) and torch.equal(self._computed.b, b)):
            with torch.inference_mode(False), torch.no_grad():
                offsets = torch.cat(
                    [(b[rows] * a.t()[columns]).sum(1) for rows, columns in _chunks(self.rows, self.columns, len(a))]
                )
                self._computed = _Computed(a.clone(), b.clone(), offsets.mul_(self.scale))
        return self._computed.offsets

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._computed = None
        return super()._apply(fn, recurse)


class _Gather(torch.autograd.Function):
    """Offsets that were gathered before, with the backward pass to A and B."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, a: Tensor, b: Tensor, offsets: Tensor, rows: Tensor, columns: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.rows, ctx.columns, ctx.scale = rows, columns, scale
        return offsets.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        grad_a_t, grad_b = torch.zeros_like(a.t()), torch.zeros_like(b)  # [in, r], [out, r]
        start = 0
        for rows, columns in _chunks(ctx.rows, ctx.columns, len(a)):
            scaled = gradient[start : start + len(rows), None] * ctx.scale  # [n, 1]
            grad_a_t.index_add_(0, columns, scaled * b[rows])
            grad_b.index_add_(0, rows, scaled * a.t()[columns])
            start += len(rows)
        return grad_a_t.t(), grad_b, None, None, None, None


def _chunks(rows: Tensor, columns: Tensor, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_NUMBERS // rank)
    return zip(torch.split(rows, size), torch.split(columns, size), strict=True)
