"""A frozen linear whose weight is stored in a smaller or a shared form and is only ever read.

``int8`` and ``int4`` store codes of the weights and their scales. ``mmap`` keeps the pages of the safetensors file,
which all processes that map it share as long as none writes to them. Entries that are written to such a layer lie
beside its weight in an overlay. The forward pass combines the two in a temporary weight, and so does the backward pass;
the temporary is freed before the next layer runs, so only one exists at a time.

Source: this project for the overlay, :mod:`taskedge.backbone.storage.coding` for the codes. torchao keeps the
dequantized weights of all layers for the backward pass, and optimum-quanto the whole input of every layer, so neither
is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.class_swap import swap_class
from taskedge.backbone.layers import LinearAdapter, ReadOnlyLayer, first_input, overridden_forward
from taskedge.backbone.storage.coding import decode, encode
from taskedge.errors import InputError


@dataclass(frozen=True)
class FrozenWeight:
    """A frozen weight and its overlay at one moment: the forward pass reads it, and its backward pass reads it again.

    Attributes:
        weight: as the layer stores it; its codes if there is a ``coding``.
        scale: of the codes; None if the weight is stored uncoded.
        coding: how the weight is coded; empty if it is not.
        shape: (out, in).
        adapter: of the layer.
        dtype: of the weight that the layer computes with.
        overlay_index: int64 [n], indices into the flattened weight.
        overlay_values: [n] in ``dtype``, the values that the weight has there.
    """

    weight: Tensor
    scale: Tensor | None
    coding: str
    shape: tuple[int, int]
    adapter: LinearAdapter
    dtype: torch.dtype
    overlay_index: Tensor
    overlay_values: Tensor

    def dense(self) -> Tensor:
        """Return the weight that the layer computes with, for reading: a temporary, or the stored one if equal."""
        if self.scale is not None:
            weight = decode(self.weight, self.scale, self.coding, self.shape, self.adapter, self.dtype)
        else:
            weight = self.weight.clone() if len(self.overlay_index) else self.weight
        if len(self.overlay_index):
            weight.view(-1).index_put_((self.overlay_index,), self.overlay_values)
        return weight


class FrozenWeightLayer(ReadOnlyLayer):
    """A linear whose weight is frozen: the same object under another class, whose ``weight`` is for reading only."""

    keeps_forward = True  # it computes the same as the class below
    adapter: LinearAdapter
    dtype: torch.dtype
    scale: Tensor | None
    coding: str
    matrix_shape: tuple[int, int]
    overlay_index: Tensor
    overlay_values: Tensor

    @property
    def frozen_weight(self) -> FrozenWeight:
        """The stored weight, with the present overlay."""
        weight = cast(Tensor, self._parameters["weight"])
        return FrozenWeight(
            weight.detach(), self.scale, self.coding, self.matrix_shape, self.adapter, self.dtype, self.overlay_index,
            self.overlay_values,
        )  # fmt: skip

    @property
    def weight(self) -> Tensor:
        """The weight as a plain layer stores it; writing to it has no lasting effect."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """Return the weight with its overlay; see :class:`ReadOnlyLayer`."""
        return self.frozen_weight.dense()

    def sync_weight(self) -> None:
        """Do nothing; a layer that trains entries brings its overlay up to date here."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Compute ``X Wᵀ + b`` as the plain layer does."""
        self.sync_weight()
        x, bias = first_input(args, kwargs), self._parameters["bias"]
        return cast(Tensor, _Product.apply(x, bias, self.frozen_weight, self.adapter))  # type: ignore[no-untyped-call]

    def overlay(self, index: tuple[Tensor, ...], values: Tensor) -> None:
        """Replace the values that the overlay has at ``index``, and add those it lacks."""
        row, column = index
        width = self.matrix_shape[0 if self.adapter.transposed else 1]
        flat, values = row * width + column, values.to(device=self.overlay_index.device, dtype=self.dtype)
        if not torch.equal(flat, self.overlay_index):
            kept = ~torch.isin(self.overlay_index, flat)
            flat = torch.cat([self.overlay_index[kept], flat])
            values = torch.cat([self.overlay_values[kept], values])
        # new tensors: a pass that is under way keeps the ones that it began with
        self.overlay_index, self.overlay_values = flat, values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenWeightLayer:
        """Move and change the dtype like any layer, except for the scale, which keeps its own."""
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        if scale is not None:
            self.scale = scale.to(self.overlay_index.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight  # as a plain layer saves it

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise InputError(
                f"the weight of {prefix!r} is read-only: load the state before the weight storage of the model is set"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class _Product(torch.autograd.Function):
    """``X Wᵀ + b`` with the gradients of X and b; the backward pass makes W again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, bias: Tensor | None, frozen_weight: FrozenWeight, adapter: LinearAdapter
    ) -> Tensor:
        ctx.frozen_weight, ctx.adapter = frozen_weight, adapter
        return F.linear(x, adapter.matrix(frozen_weight.dense()), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens = grad_output.reshape(-1, grad_output.shape[-1])  # [tokens, out]
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = ctx.adapter.matrix(ctx.frozen_weight.dense()).to(tokens.dtype)
            grad_x = (tokens @ weight).view(*grad_output.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            grad_bias = tokens.sum(0)
        return grad_x, grad_bias, None, None


def can_freeze(module: nn.Module) -> bool:
    """Return whether ``module`` is a linear that computes what torch or transformers defines, and is not frozen yet."""
    if isinstance(module, FrozenWeightLayer) or not isinstance(LinearAdapter.match(module), LinearAdapter):
        return False
    plain = next(base for base in type(module).__mro__ if base is nn.Linear or base.__name__ == "Conv1D")
    return overridden_forward(module, plain) is None


def freeze_layer(name: str, module: nn.Module, coding: str = "") -> FrozenWeightLayer:
    """Freeze the weight of a linear for which :func:`can_freeze` is true, as codes or uncoded.

    Args:
        name: of the layer, for messages.
        module: is changed in place and gets another class.
        coding: one of :data:`taskedge.backbone.storage.coding.CODINGS` to replace the weight by codes; else empty.

    Raises:
        InputError: there is no code for a weight that is not finite, or too large.
    """
    adapter = LinearAdapter.match(module)
    assert adapter is not None
    weight, scale = cast(Tensor, module.weight), None
    out, inputs = adapter.matrix(weight).shape
    if coding:
        codes, scale = encode(weight, adapter, coding)
        if not bool(scale.isfinite().all()):
            raise InputError(f"linear {name!r} holds weights that are not finite, for which {coding} has no code")
        module._parameters["weight"] = nn.Parameter(codes, requires_grad=False)
    module.requires_grad_(False)
    swap_class(module, FrozenWeightLayer, "Frozen")
    layer = cast(FrozenWeightLayer, module)
    layer.adapter, layer.dtype, layer.coding, layer.matrix_shape = adapter, weight.dtype, coding, (out, inputs)
    no_index = torch.empty(0, dtype=torch.int64, device=weight.device)
    no_values = torch.empty(0, dtype=weight.dtype, device=weight.device)
    layer.register_buffer("scale", scale, persistent=False)
    layer.register_buffer("overlay_index", no_index, persistent=False)
    layer.register_buffer("overlay_values", no_values, persistent=False)
    return layer


def num_weights(model: nn.Module) -> int:
    """Return the number of a model's parameters; codes count as the weight that they stand for."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, FrozenWeightLayer) and module.coding:
            codes = cast(Tensor, module._parameters["weight"])
            total += module.matrix_shape[0] * module.matrix_shape[1] - codes.numel()
    return total
