"""Sparse LoRA: ``W + M∘(BA)·alpha/r``, the offsets of the chosen entries taken from a product of two thin factors.

``offset[e] = alpha/r·Σ_k B[row_e, k]·A[k, column_e]``, gathered at the entries: neither the product nor a mask is ever
made. All else, from the writing into the weight to the delta, is that of the sparse form.

Source: TaskEdge (arXiv 2504.03718) names sparse low-rank adaptation; the mask on the product, and the gather, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskedge.backbone.linears import Linear
from taskedge.forms import form
from taskedge.forms.low_rank import Factors
from taskedge.forms.sparse import Entries, MakeEntries, SharedInput
from taskedge.selection.support import LinearSupport

_AT_ONCE = 2**20
"""Numbers: of the entries' factors, at most so many are gathered at a time, however many entries there are."""


@form("sparse_lora", factored=True)
def sparse_lora(rank: int, factors: Factors) -> MakeEntries:
    """Entries that share a low-rank product."""
    return partial(LowRankEntries, rank=rank, factors=factors)


class LowRankEntries(Entries):
    """The entries of one linear, their offsets the entries of ``scale·BA``.

    Attributes:
        a: float32 [rank, in], trained.
        b: float32 [out, rank], trained; zeros at first.
        scale: alpha/r.
    """

    def __init__(
        self,
        linear: Linear,
        support: LinearSupport,
        shared: SharedInput,
        step: Tensor | None,
        *,
        rank: int,
        factors: Factors,
    ) -> None:
        super().__init__(linear, support, shared, step)
        self.a, self.b = factors.draw(rank, support.shape, self.rows.device)
        self.scale = factors.scale(rank)
        self._made: tuple[Tensor, Tensor, Tensor] | None = None  # A and B as they were, and the offsets they gave

    def trained(self) -> Tensor:
        now = self._offsets()
        if not torch.is_grad_enabled():
            return now
        return cast(
            Tensor,
            _Gather.apply(self.a, self.b, now, self.rows, self.columns, self.scale),  # type: ignore[no-untyped-call]
        )

    def _offsets(self) -> Tensor:
        """float32 [n] without gradient; computed only where A or B changed, which is seen by their content."""
        a, b = self.a.detach(), self.b.detach()
        if self._made is None or not (torch.equal(self._made[0], a) and torch.equal(self._made[1], b)):
            with torch.inference_mode(False), torch.no_grad():
                offsets = torch.cat(
                    [(b[rows] * a.t()[columns]).sum(1) for rows, columns in _parts(self.rows, self.columns, len(a))]
                )
                self._made = a.clone(), b.clone(), offsets.mul_(self.scale)
        return self._made[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Entries:
        self._made = None
        return super()._apply(fn, recurse)


class _Gather(torch.autograd.Function):
    """The offsets that were gathered already, with the way back to A and B."""

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
        inward, outward = torch.zeros_like(a.t()), torch.zeros_like(b)  # [in, r], [out, r]
        start = 0
        for rows, columns in _parts(ctx.rows, ctx.columns, len(a)):
            part = gradient[start : start + len(rows), None] * ctx.scale  # [n, 1]
            inward.index_add_(0, columns, part * b[rows])
            outward.index_add_(0, rows, part * a.t()[columns])
            start += len(rows)
        return inward.t(), outward, None, None, None, None


def _parts(rows: Tensor, columns: Tensor, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _AT_ONCE // rank)
    return zip(torch.split(rows, size), torch.split(columns, size), strict=True)
