"""Sparse in place: a linear that trains a few of its own weights, and computes, keeps and stores nothing else.

The forward pass is the untouched layer on its own weight. The backward pass gives ``dX = dY·W`` as it would with a
frozen weight, and the chosen entries of dW from the few columns of X that they use. The weight itself holds the trained
values, which are written into it whenever something reads it.

Source: TaskEdge (arXiv 2504.03718) for training chosen weights in place; this project for the form and its engine.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.backbone.layers import LayerAdapter, Linear, first_input, stored_weight
from taskedge.errors import InputError
from taskedge.forms.entries import Entries, MakeEntries, SharedInput
from taskedge.forms.form_registry import form
from taskedge.forms.kernels import EntryIndex, entry_gradient
from taskedge.forms.low_rank import Factors
from taskedge.selection.support import LayerSupport


class FreeEntries(Entries):
    """Entries that move independently of one another.

    Attributes:
        offsets: float32 [n], the only trained parameter; 0 where nothing was learned.
    """

    def __init__(self, linear: Linear, support: LayerSupport, shared_input: SharedInput, step: Tensor | None) -> None:
        super().__init__(linear, support, shared_input, step)
        self.offsets = nn.Parameter(torch.zeros(len(support), device=self.rows.device))

    def current_offsets(self) -> Tensor:
        """Return the trained parameter."""
        return self.offsets


@form("sparse")
def sparse(rank: int, factors: Factors) -> MakeEntries:
    """Make entries that move independently; ``rank`` and ``factors`` are not used."""
    return FreeEntries


def offset_gradient(grad_tokens: Tensor, columns: Tensor, ctx: Any) -> Tensor:
    """Return the gradient of a layer's offsets [n], in their dtype.

    Args:
        grad_tokens: [tokens, out], of the layer's output.
        columns: [tokens, m], the gathered columns of its input.
        ctx: has what the forward pass knew: ``index``, ``step`` and ``active`` as in
            :class:`~taskedge.forms.entries.Entries`, and of the offsets their ``dtype`` and number, ``entries``.
    """
    gradient = entry_gradient(grad_tokens, columns, ctx.index).to(ctx.dtype)
    if ctx.active is not None:
        gradient = gradient.new_zeros(ctx.entries).index_copy_(0, ctx.active, gradient)
    return gradient if ctx.step is None else ctx.step * gradient


class _EntryGradient(torch.autograd.Function):
    """The identity on a layer's output, whose backward pass also gives the gradient of the layer's entries."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        output: Tensor,
        offsets: Tensor,
        step: Tensor | None,
        columns: Tensor,
        index: EntryIndex,
        adapter: LayerAdapter,
        active: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.step, ctx.index, ctx.adapter, ctx.active = step, index, adapter, active
        ctx.dtype, ctx.entries = offsets.dtype, len(offsets)
        return output.detach()  # the same memory; ``output`` itself would be returned as a view that is not writable

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_output = grad_output.contiguous()  # once, for both this product and the gradient of the input
        gradient = None
        if ctx.needs_input_grad[1]:
            (columns,) = ctx.saved_tensors
            tokens = ctx.adapter.output_tokens(grad_output)
            gradient = offset_gradient(tokens, columns, ctx)
        return grad_output, gradient, None, None, None, None, None


class SparseLayer(nn.Module):
    """A linear while some of its own weights train: the same object under another class, with ``entries``.

    The class is swapped and the object kept, so hooks, references and names stay valid.
    """

    entries: Entries
    keeps_forward = True  # it computes the same as the class below

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, up to date with the trained values.

        Reading it calls :meth:`sync_weight`, so it may write to the stored weight. The forward pass of the class below
        and code outside this project read ``weight`` as an attribute, so there is no later moment to do this.
        """
        self.sync_weight()
        return stored_weight(self)

    def sync_weight(self) -> None:
        """Write the trained values into the stored weight if they changed since the last time."""
        self.entries.write_into(self)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Compute the output of the class below; with gradient, also connect the entries to it."""
        output: Tensor = super().forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return output
        entries = self.entries
        offsets = entries.current_offsets()
        if not offsets.requires_grad:
            return output
        columns = entries.shared_input.gather(first_input(args, kwargs), output.dtype)
        return cast(
            Tensor,
            _EntryGradient.apply(  # type: ignore[no-untyped-call]
                output, offsets, entries.step, columns, entries.entry_index(), entries.adapter, entries.active
            ),
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.sync_weight()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def check_entries(linear: Linear, support: LayerSupport) -> None:
    """Raise InputError if the linear cannot train the entries of ``support``."""
    if isinstance(linear.module, SparseLayer):
        raise InputError(
            f"linear {linear.name!r} already trains entries: fuse the model before a new support is installed"
        )
    if linear.shape != support.shape:
        raise InputError(
            f"linear {linear.name!r} is {list(linear.shape)}, but the support was made for {list(support.shape)}"
        )


def make_sparse(
    linear: Linear,
    support: LayerSupport,
    shared_input: SharedInput,
    step: Tensor | None = None,
    make_entries: MakeEntries = FreeEntries,
) -> SparseLayer:
    """Make the linear train the entries of ``support``, in place; :func:`fuse_sparse` undoes it."""
    check_entries(linear, support)
    linear.module.requires_grad_(False)
    entries = make_entries(linear, support, shared_input, step)
    swap_class(linear.module, SparseLayer, "Sparse")
    linear.module.add_module("entries", entries)
    return cast(SparseLayer, linear.module)


def fuse_sparse(layer: SparseLayer) -> nn.Module:
    """Make the layer plain again, with the trained values in its weight."""
    layer.sync_weight()
    del layer.entries
    restore_class(layer)
    return layer


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Return the layers of the model that train entries, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
