"""Low rank: a linear that trains ``W + alpha/r·BA`` with a thin A [r, in] and B [out, r] beside its frozen weight.

For linears to which a support gives a low-rank module, beside others that train entries. :func:`make_low_rank` swaps
the class and keeps the object; :func:`fuse_low_rank` adds the product to the weight and makes the layer plain again.

Source: LoRA (arXiv 2106.09685); for hybrids with chosen weights, SPT (arXiv 2303.08566).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.backbone.layers import Linear, LinearAdapter, as_linear, first_input
from taskedge.errors import InputError
from taskedge.forms.master_weights import FixedDtypeModule


@dataclass(frozen=True)
class Factors:
    """How the factors of a run start and how their product is scaled: by alpha/r.

    Attributes:
        generator: draws A.
        alpha: None means the rank, so that the product is not scaled.
    """

    generator: torch.Generator
    alpha: float | None = None

    def scale(self, rank: int) -> float:
        """Return the factor that the product BA is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / rank

    def draw(self, rank: int, shape: tuple[int, int], device: torch.device) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A [rank, in], uniform within ±1/√in, and B [out, rank] of zeros, as LoRA starts; float32.

        The values are the same on every device, since the CPU draws them.
        """
        out_features, in_features = shape
        a = torch.empty(rank, in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=self.generator)
        return nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(out_features, rank, device=device))


def with_product(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``weight + scale·BA`` [out, in] in the weight's dtype: computed in fp32 at least, and rounded once.

    Where the product is 0 the weight keeps its bits, including the sign of a zero.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), torch.float32)
    product = (b.to(weight.device, dtype) @ a.to(weight.device, dtype)).mul_(scale)
    return torch.where(product == 0, weight, (weight.to(dtype) + product).to(weight.dtype))


class Product(FixedDtypeModule):
    """The trained factors of one linear.

    Attributes:
        a: float32 [rank, in].
        b: float32 [out, rank].
        scale: multiplies their product.
        relative_rate: learning rate of the factors, relative to that of the rest of the model's body.
    """

    relative_rate = 1.0

    def __init__(self, linear: Linear, rank: int, factors: Factors) -> None:
        super().__init__()
        self.a, self.b = factors.draw(rank, linear.shape, linear.device)
        self.scale = factors.scale(rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to scale·x AᵀBᵀ [..., out], in fp32 unless autocast says otherwise."""
        inner = F.linear(x.to(self.a.dtype), self.a) * self.scale  # [..., rank]
        return F.linear(inner, self.b)

    def added(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added to the output [..., out] of the base's layer for the input x; some forms read both."""
        added: Tensor = self(x)
        return added

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B, whose scaled product is the change of the weight."""
        return self.a, self.b


class LowRankLayer(nn.Module):
    """A linear while factors train beside it: the same object under another class, with a ``product``."""

    keeps_forward = True  # it adds to the output of the class below
    is_extensible = True  # its product may compute more than the factors do
    product: Product

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Add the product to the output of the class below, in the dtype of that output."""
        output: Tensor = super().forward(*args, **kwargs)
        added = self.product.added(first_input(args, kwargs), output)
        return (output + added).to(output.dtype)


def check_rank(owner: str, rank: int) -> None:
    """Raise InputError unless ``rank`` is an integer above 0; ``owner`` has the rank, for the message."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"{owner} has a rank of {rank!r}: a whole number from 1 on is needed")


def check_low_rank(linear: Linear, rank: int) -> None:
    """Raise InputError if the linear cannot carry factors of that rank."""
    check_rank(f"linear {linear.name!r}", rank)
    if not isinstance(linear.adapter, LinearAdapter):
        raise InputError(
            f"linear {linear.name!r} is a {type(linear.module).__name__}: only nn.Linear and Conv1D can carry a "
            "low-rank product"
        )
    if linear.is_read_only:
        raise InputError(
            f"the weight of linear {linear.name!r} is read-only (coded or mapped from a file), so no low-rank product "
            "can go into it: load the base with weight storage 'resident'"
        )


def make_low_rank(linear: Linear, rank: int, factors: Factors) -> LowRankLayer:
    """Make the linear train a product of that rank beside its weight; :func:`fuse_low_rank` undoes it."""
    check_low_rank(linear, rank)
    linear.module.requires_grad_(False)
    product = Product(linear, rank, factors)
    swap_class(linear.module, LowRankLayer, "LowRank")
    linear.module.add_module("product", product)
    return cast(LowRankLayer, linear.module)


def fuse_low_rank(layer: LowRankLayer) -> nn.Module:
    """Make the layer plain again, with the product added to its weight."""
    linear = cast(Linear, as_linear("", layer))
    a, b = layer.product.factors()
    linear.overwrite(with_product(linear.weight, a.detach(), b.detach(), layer.product.scale))
    del layer.product
    restore_class(layer)
    return layer


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the layers of the model that train a product, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def extensible_layers(model: nn.Module, what: str) -> dict[str, LowRankLayer]:
    """Return the layers of the model whose products can compute more than ``scale·BA``, by name.

    Args:
        model: has low-rank products installed.
        what: is to be added, for messages.

    Raises:
        InputError: there is no product, or one stands beside entries and has a backward pass of its own.
    """
    layers = low_rank_layers(model)
    if not layers:
        raise InputError(f"the model trains no low-rank product, so there is none to add {what} to")
    for name, layer in layers.items():
        if not layer.is_extensible:
            raise InputError(
                f"linear {name!r} trains entries beside its product, which cannot have {what}: install low-rank "
                "products without entries"
            )
    return layers


def relative_rates(model: nn.Module) -> dict[int, float]:
    """Return the relative learning rate of factors that have one other than 1, by the id of the parameter."""
    products = [layer.product for layer in low_rank_layers(model).values() if layer.product.relative_rate != 1]
    return {id(parameter): product.relative_rate for product in products for parameter in product.parameters()}
