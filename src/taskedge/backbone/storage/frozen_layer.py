"""Held weights: a frozen linear whose weight lies in memory in a smaller or a shared form, and is only ever read.

``int8`` keeps a code of 8 bits per weight and one scale per neuron. ``mapped`` keeps the pages of the safetensors file,
which all processes that map it share as long as none writes to them. What is written to such a layer, the entries, lies
beside its weight in an overlay. A pass puts the two together in a temporary weight, as does the way back; it is gone
before the next layer's turn, so no two of them are ever there at once.

Source: symmetric absolute-maximum quantisation per output channel, as in LLM.int8() (arXiv 2208.07339, section 2), of
weights only; the overlay is ours. torchao keeps the dequantised weights of all layers for the backward pass, and
optimum-quanto every layer's whole input, so neither serves here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.layer_adapters import Features, own_forward
from taskedge.errors import InputError

INT8 = "int8"
LEVELS = 127
"""Steps on either side of zero."""


@dataclass(frozen=True)
class Held:
    """A weight as it is held: what a pass reads, and what its way back will read again.

    Attributes:
        weight: as the layer stores it; int8 codes where there is a ``scale``.
        scale: float32, one per neuron, shaped to multiply the codes; None: the weight is held as it is.
        dtype: of the weight that the layer computes with.
        places: int64 [n], of the overlay: indices into the flattened weight.
        values: [n] in ``dtype``, what stands there instead.
    """

    weight: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    places: Tensor
    values: Tensor

    def dense(self) -> Tensor:
        """The weight that the layer computes with, to be read: a temporary, or the held one where it is the same."""
        if self.scale is not None:
            weight = dequantised(self.weight, self.scale, self.dtype)
        else:
            weight = self.weight.clone() if len(self.places) else self.weight
        if len(self.places):
            weight.view(-1).index_put_((self.places,), self.values)
        return weight


class HeldLayer(nn.Module):
    """What a linear becomes when its weight is held: the same object, whose ``weight`` is to be read only."""

    keeps_forward = True  # what it computes is what the class below does
    kind: Features
    dtype: torch.dtype
    scale: Tensor | None
    places: Tensor
    values: Tensor

    @property
    def held(self) -> Held:
        """What is held, with the overlay as it is now."""
        weight = cast(Tensor, self._parameters["weight"])
        return Held(weight.detach(), self.scale, self.dtype, self.places, self.values)

    @property
    def weight(self) -> Tensor:
        """The weight as a plain layer stores it; nothing that is written to it is sure to stay."""
        return self.held.dense()

    def update(self) -> None:
        """Where entries train, their layer brings the overlay up to date here."""

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        self.update()
        x = next(iter((*given, *named.values())))  # every class has its own name for it
        bias = self._parameters["bias"]
        return cast(Tensor, _Product.apply(x, bias, self.held, self.kind))  # type: ignore[no-untyped-call]

    def lay_over(self, place: tuple[Tensor, ...], values: Tensor) -> None:
        """From now on the weight holds ``values`` [n] at ``place``, its index in the weight as it is stored."""
        weight = cast(Tensor, self._parameters["weight"])
        row, column = place
        places, values = row * weight.shape[1] + column, values.to(device=weight.device, dtype=self.dtype)
        if not torch.equal(places, self.places):
            stays = ~torch.isin(self.places, places)
            places, values = torch.cat([self.places[stays], places]), torch.cat([self.values[stays], values])
        self.places, self.values = places, values  # new ones: a pass that is under way keeps those that it began with

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeldLayer:
        """Moves and changes the dtype like any layer, but for the scale, which stays float32."""
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        if scale is not None:
            self.scale = scale.to(self.places.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight  # as of a plain layer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *given: Any) -> None:
        if f"{prefix}weight" in state_dict:
            raise InputError(f"the weight of {prefix!r} is held and only read: load the state before the model is held")
        super()._load_from_state_dict(state_dict, prefix, *given)


class _Product(torch.autograd.Function):
    """``X Wᵀ + b`` with the gradients of X and b; W is made anew on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, held: Held, kind: Features) -> Tensor:  # type: ignore[override]
        ctx.held, ctx.kind = held, kind
        return F.linear(x, kind.matrix(held.dense()), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tokens = grad_output.reshape(-1, grad_output.shape[-1])  # (tokens, out)
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            weight = ctx.kind.matrix(ctx.held.dense()).to(tokens.dtype)
            of_x = (tokens @ weight).view(*grad_output.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            of_bias = tokens.sum(0)
        return of_x, of_bias, None, None


def quantised(weight: Tensor, kind: Features) -> tuple[Tensor, Tensor]:
    """Codes int8 like ``weight`` (as its layer stores it, finite), and the scale of each neuron, float32.

    The nearest of 255 even steps between ± the neuron's largest weight; the same bits on every machine.
    """
    weight = weight.detach().float()
    largest = torch.linalg.vector_norm(weight, torch.inf, dim=0 if kind.transposed else 1, keepdim=True)
    scale = (largest / LEVELS).clamp_min_(torch.finfo(torch.float32).tiny)  # a neuron may be all zeros
    return (weight / scale).round_().to(torch.int8), scale


def dequantised(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight that ``codes`` stand for."""
    return codes.float().mul_(scale).to(dtype)


def rounded_to_int8(module: nn.Module) -> Tensor:
    """The weight, as the layer stores it, that a linear would compute with were it held as int8; it is not so yet."""
    kind, weight = _plain(module)
    return dequantised(*quantised(weight, kind), weight.dtype)


def can_be_held(module: nn.Module) -> bool:
    """Whether it is a linear that computes what its class of torch or transformers does."""
    if isinstance(module, HeldLayer) or not isinstance(Features.of(module), Features):
        return False
    plain = next(each for each in type(module).__mro__ if each is nn.Linear or each.__name__ == "Conv1D")
    return own_forward(module, plain) is None


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def from_base(name: str, module: nn.Module, *, int8: bool) -> HeldLayer:
    """Makes a linear that :func:`can_be_held` hold its weight, as int8 codes or as it is; ``name`` is for messages.

    Raises:
        InputError: int8 has no code for a weight that is not finite.
    """
    (kind, weight), scale = _plain(module), None
    if int8:
        codes, scale = quantised(weight, kind)
        if not bool(scale.isfinite().all()):
            raise InputError(f"linear {name!r} holds weights that are not finite, for which int8 has no code")
        module._parameters["weight"] = nn.Parameter(codes, requires_grad=False)
    module.requires_grad_(False)
    base = type(module)
    if base not in _classes:
        _classes[base] = type(f"Held{base.__name__}", (HeldLayer, base), {"__module__": __name__})
    module.__class__ = _classes[base]
    layer = cast(HeldLayer, module)
    layer.kind, layer.dtype = kind, weight.dtype
    layer.register_buffer("scale", scale, persistent=False)
    layer.register_buffer("places", torch.empty(0, dtype=torch.int64, device=weight.device), persistent=False)
    layer.register_buffer("values", torch.empty(0, dtype=weight.dtype, device=weight.device), persistent=False)
    return layer


def _plain(module: nn.Module) -> tuple[Features, Tensor]:
    """Kind and weight of a linear that is not held as int8."""
    kind = Features.of(module)
    assert kind is not None
    return kind, cast(Tensor, module.weight)


def plain_dtype(module: nn.Module) -> str:
    """What a layer's weight is held in, such as ``"float32"``; ``"int8"`` where it is held as codes."""
    weight = module._parameters.get("weight")
    dtype = cast(Tensor, module.weight).dtype if weight is None else weight.dtype
    return str(dtype).removeprefix("torch.")
