"""Low rank: a linear that trains ``W + alpha/r·BA`` with a thin A [r, in] and B [out, r] beside its frozen weight.

For linears that a support gives to a low-rank module as a whole, beside others that train entries. ``from_base`` swaps
the class and keeps the object, ``fuse`` writes the product into the weight and makes the layer plain again.

Source: LoRA (arXiv 2106.09685); for hybrids with chosen weights, SPT (arXiv 2303.08566).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.layer_adapters import Features
from taskedge.backbone.linears import Linear, as_linear
from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.errors import InputError


@dataclass(frozen=True)
class Factors:
    """How factors start and what their product is scaled by: alpha/r."""

    generator: torch.Generator
    alpha: float | None = None
    """None: as the rank, so that the product is not scaled."""

    def scale(self, rank: int) -> float:
        """What the product BA is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def draw(self, rank: int, shape: tuple[int, int], device: torch.device) -> tuple[nn.Parameter, nn.Parameter]:
        """A [rank, in], uniform within ±1/√in, and B [out, rank] of zeros, as LoRA starts; float32.

        The same on every device, since the CPU draws.
        """
        out, inputs = shape
        a = torch.empty(rank, inputs)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=self.generator)
        return nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(out, rank, device=device))


def with_product(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``weight + scale·BA`` [out, in] in the weight's dtype: computed in fp32 at least, and rounded once.

    Where the product is 0 the weight keeps its bits, the sign of a zero included.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
    moved = (b.to(weight.device, dtype) @ a.to(weight.device, dtype)).mul_(scale)
    return torch.where(moved == 0, weight, (weight.to(dtype) + moved).to(weight.dtype))


class Product(nn.Module):
    """The trained factors of one linear.

    Attributes:
        a: float32 [rank, in].
        b: float32 [out, rank].
        scale: what their product is multiplied by.
    """

    def __init__(self, linear: Linear, rank: int, factors: Factors) -> None:
        super().__init__()
        self.a, self.b = factors.draw(rank, linear.shape, linear.weight.device)
        self.scale = factors.scale(rank)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> scale·x AᵀBᵀ [..., out], in fp32 unless autocast says otherwise."""
        inner = F.linear(x.to(self.a.dtype), self.a) * self.scale  # [..., rank]
        return F.linear(inner, self.b)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Product:
        """Moves between devices, but never changes a dtype: factors stay fp32 under ``model.to(bfloat16)``."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self


class LowRankLayer(nn.Module):
    """What a linear becomes while factors train beside it: the same object, with a ``product``."""

    keeps_forward = True  # what it adds to is what the class below computes
    product: Product

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        output: Tensor = super().forward(*given, **named)
        x = next(iter((*given, *named.values())))  # every class has its own name for it
        moved: Tensor = self.product(x)
        return (output + moved).to(output.dtype)


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def check_rank(where: str, rank: int) -> None:
    """Raises InputError where ``rank`` is none; ``where`` is for the message."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"{where} has a rank of {rank!r}: a whole number from 1 on is needed")


def check(linear: Linear, rank: int) -> None:
    """Raises InputError where the linear cannot carry factors of that rank."""
    check_rank(f"linear {linear.name!r}", rank)
    if not isinstance(linear.kind, Features):
        raise InputError(
            f"linear {linear.name!r} is a {type(linear.module).__name__}: only nn.Linear and Conv1D can carry a "
            "low-rank product"
        )
    if isinstance(linear.module, HeldLayer):
        raise InputError(
            f"the weight of linear {linear.name!r} is held and only read, so no low-rank product can go into it: load "
            "the base with base='loaded'"
        )


def from_base(linear: Linear, rank: int, factors: Factors) -> LowRankLayer:
    """Makes the linear train a product of that rank beside its weight. ``fuse`` is its mirror image."""
    check(linear, rank)
    linear.module.requires_grad_(False)
    product = Product(linear, rank, factors)
    base = type(linear.module)
    if base not in _classes:
        _classes[base] = type(f"LowRank{base.__name__}", (LowRankLayer, base), {"__module__": __name__})
    linear.module.__class__ = _classes[base]
    linear.module.add_module("product", product)
    return cast(LowRankLayer, linear.module)


def fuse(layer: LowRankLayer) -> nn.Module:
    """Makes the layer plain again, its weight holding the product as well."""
    linear = cast(Linear, as_linear("", layer))
    product = layer.product
    linear.weight.copy_(with_product(linear.weight, product.a.detach(), product.b.detach(), product.scale))
    del layer.product
    plain: Any = type(layer).__mro__[2]
    layer.__class__ = plain
    return layer


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """The layers of the model that train a product, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}
