"""Sparse plus low rank: a linear trains chosen entries in place and a product beside them, ``W + M∘Δ + alpha/r·BA``.

The input of the layer is kept once for both parts, in its own dtype: the backward pass gathers the columns of the
entries from it, and computes the r numbers per token of the product again. Query, key and value keep the same tensor.

Source: RoSA (arXiv 2401.04679), the joint training of a sparse and a low-rank change. This project: entries by any
rule of selection, their scaled steps, training in place, and the shared input.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.backbone.layers import Linear, as_linear, as_tokens, first_input
from taskedge.forms import PRODUCT_RATE
from taskedge.forms.entries import Entries, MakeEntries
from taskedge.forms.form_registry import form
from taskedge.forms.low_rank import Factors, LowRankLayer, Product, low_rank_layers, with_product
from taskedge.forms.sparse import FreeEntries, SparseLayer, offset_gradient


class SparsePlusLowRankLayer(SparseLayer, LowRankLayer):
    """A linear while some of its own weights and a product beside it train; the same object under another class."""

    keeps_forward = True  # it adds to the output of the class below
    is_extensible = False  # the backward pass is that of the factors alone

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Add the product to the output of the class below; with gradient, also connect entries and factors to it."""
        output: Tensor = super(LowRankLayer, self).forward(*args, **kwargs)  # the class below both
        x = first_input(args, kwargs)
        if not torch.is_grad_enabled():
            return _sum(output, x, self.product)
        offsets, product = self.entries.current_offsets(), self.product
        summed = _Both.apply(output, x, offsets, product.a, product.b, product, self.entries)  # type: ignore[no-untyped-call]
        return cast(Tensor, summed)


def add_product(linear: Linear, rank: int, factors: Factors) -> None:
    """Let a linear that trains entries train a product of that rank as well."""
    product = Product(linear, rank, factors)
    product.relative_rate = PRODUCT_RATE
    restore_class(linear.module)
    swap_class(linear.module, SparsePlusLowRankLayer, "SparsePlusLowRank")
    linear.module.add_module("product", product)


@form("sparse_plus_low_rank", factored=True, add_product=add_product)
def sparse_plus_low_rank(rank: int, factors: Factors) -> MakeEntries:
    """Make entries that move independently; the product is added to the layer afterwards."""
    return FreeEntries


def set_product_rate(model: nn.Module, rate: float) -> None:
    """Set the learning rate of all products beside entries, relative to that of the entries, for this trainer."""
    for layer in sparse_plus_low_rank_layers(model).values():
        layer.product.relative_rate = rate


def sparse_plus_low_rank_layers(model: nn.Module) -> dict[str, SparsePlusLowRankLayer]:
    """Return the layers of the model that train entries and a product, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparsePlusLowRankLayer)}


def base_weight(layer: SparsePlusLowRankLayer) -> Tensor:
    """Return a copy of the weight of the base [out, in]: the layer's own, with the base's values at the entries."""
    weight, entries = cast(Linear, as_linear("", layer)).weight.clone(), layer.entries
    weight[entries.rows, entries.columns] = entries.base
    return weight


def fuse_sparse_plus_low_rank(layer: SparsePlusLowRankLayer) -> nn.Module:
    """Make the layer plain again: the trained values in its weight, and then the product added to it."""
    linear = cast(Linear, as_linear("", layer))
    a, b = layer.product.factors()
    linear.overwrite(with_product(linear.weight, a.detach(), b.detach(), layer.product.scale))
    del layer.entries, layer.product
    restore_class(layer)
    return layer


def remove_products(model: nn.Module) -> None:
    """Remove every product that trains, alone or beside entries; what they learned is lost, and entries stay."""
    for layer in sparse_plus_low_rank_layers(model).values():
        del layer.product
        restore_class(layer)
        swap_class(layer, SparseLayer, "Sparse")
    for low_rank_layer in low_rank_layers(model).values():
        del low_rank_layer.product
        restore_class(low_rank_layer)


def _sum(output: Tensor, x: Tensor, product: Product) -> Tensor:
    added: Tensor = product(x)
    return (output + added).to(output.dtype)


class _Both(torch.autograd.Function):
    """The output of a layer plus its product, with the gradients of entries and factors in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, output: Tensor, x: Tensor, offsets: Tensor, a: Tensor, b: Tensor, product: Product, entries: Entries
    ) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        ctx.wide = torch.get_autocast_dtype(x.device.type) if autocast else a.dtype
        ctx.output_dtype, ctx.scale, ctx.shape, ctx.x_dtype = output.dtype, product.scale, x.shape, x.dtype
        ctx.adapter, ctx.step, ctx.active = entries.adapter, entries.step, entries.active
        ctx.index, ctx.dtype, ctx.entries = entries.entry_index(), offsets.dtype, len(offsets)
        ctx.columns = entries.shared_input.columns.to(x.device)
        trains = any(ctx.needs_input_grad[2:5])  # in a rotation, layers of other blocks only pass gradients on
        ctx.save_for_backward(x if trains else None, a, b)
        return _sum(output, x, product)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, a, b = ctx.saved_tensors
        grad_output = grad_output.contiguous()  # once, for all products
        tokens = as_tokens(grad_output).to(ctx.wide)  # [tokens, out]
        a_wide, b_wide = a.to(ctx.wide), b.to(ctx.wide)
        inner = (tokens @ b_wide) * ctx.scale  # [tokens, rank]
        grad_x = grad_offsets = grad_a = grad_b = None
        if ctx.needs_input_grad[1]:
            grad_x = (inner @ a_wide).view(ctx.shape).to(ctx.x_dtype)
        if ctx.needs_input_grad[2]:
            columns = ctx.adapter.gather(x, ctx.columns).to(ctx.output_dtype)
            grad_offsets = offset_gradient(ctx.adapter.output_tokens(grad_output), columns, ctx)
        if any(ctx.needs_input_grad[3:5]):
            inputs = as_tokens(x).to(ctx.wide)
            grad_a = (inner.t() @ inputs).to(a.dtype)
            grad_b = (tokens.t() @ ((inputs @ a_wide.t()) * ctx.scale)).to(b.dtype)
        return grad_output, grad_x, grad_offsets, grad_a, grad_b, None, None
