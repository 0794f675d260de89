"""LoRA-Dash: low-rank products that, after a while, also train the weight along a few of its own singular directions.

With ``W = U·diag(s)·Vᵀ``, the product ``D = scale·BA`` changes the i-th singular value by ``u_iᵀ·D·v_i``. After some
steps the directions with the largest relative change are chosen, and from then on the layer computes
``Wx + D·x + U_S·diag(c)·V_Sᵀ·x`` with c trained from 0 and U_S, V_S fixed. Until then it computes what the low-rank
form does, bit for bit.

Source: LoRA-Dash (arXiv 2409.01035); this project for the floor under small singular values.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.layers import Linear, as_linear
from taskedge.errors import InputError
from taskedge.forms.low_rank import LowRankLayer, Product, extensible_layers, low_rank_layers

FLOOR = 1e-6
"""Changes are relative to ``s_i + FLOOR·s_1``, so that a singular value near 0 does not win by its size alone."""


class DashProduct(Product):
    """The trained factors of one linear, and the change along its singular directions.

    Attributes:
        c: float32 [k], trained: the change along each direction.
        u: float32 [out, k], fixed; zeros until directions are chosen.
        v: float32 [k, in], fixed.
        chosen: int64 [k], which singular directions these are; -1 until they are chosen.
    """

    u: Tensor
    v: Tensor
    chosen: Tensor

    @classmethod
    def add_to(cls, product: Product, directions: int) -> None:
        """Make a plain product one with directions, in place; the factors stay the same objects."""
        device = product.a.device
        product.__class__ = cls
        product.register_parameter("c", nn.Parameter(torch.zeros(directions, device=device)))
        product.register_buffer("u", torch.zeros(len(product.b), directions, device=device))
        product.register_buffer("v", torch.zeros(directions, product.a.shape[1], device=device))
        product.register_buffer("chosen", torch.full((directions,), -1, device=device))

    c: nn.Parameter

    @property
    def started(self) -> bool:
        """Whether directions are chosen."""
        return bool(self.chosen[0] >= 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to the change of the output [..., out]; before the start exactly as a plain product."""
        output = super().forward(x)
        if not self.started:
            return output
        along = F.linear(x.to(self.v.dtype), self.v) * self.c  # [..., k]
        return output + F.linear(along, self.u)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A [r + k, in] and B [out, r + k], whose scaled product is the whole change."""
        if not self.started:
            return super().factors()
        b = self.u * (self.c / self.scale)
        return torch.cat([self.a, self.v]), torch.cat([self.b, b], dim=1)


def add_directions(model: nn.Module, directions: int) -> None:
    """Let every installed low-rank product train along singular directions, from :func:`choose_directions` on.

    Args:
        model: has low-rank products installed.
        directions: number of directions of each linear.

    Raises:
        InputError: the model has no low-rank products, or a linear has fewer singular directions. The model is
            unchanged.
    """
    layers = extensible_layers(model, "directions")
    for name, layer in layers.items():
        most = min(len(layer.product.b), layer.product.a.shape[1])
        if not 1 <= directions <= most:
            raise InputError(f"linear {name!r} has {most} singular directions, not {directions}: give from 1 to {most}")
    for layer in layers.values():
        DashProduct.add_to(layer.product, directions)


def choose_directions(model: nn.Module) -> dict[str, list[int]]:
    """Choose the singular directions of every linear by what its product has learned, and start to train them.

    Linears that have started keep their directions.

    Returns:
        The chosen directions by linear, the one with the largest relative change first; 0 is the direction of the
        largest singular value.
    """
    return {name: _choose(layer) for name, layer in dash_layers(model).items()}


def dash_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the layers of the model that train along singular directions, by name."""
    return {name: layer for name, layer in low_rank_layers(model).items() if isinstance(layer.product, DashProduct)}


def dash_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the fixed tensors of all started layers, by buffer name: their state beside the trained parameters."""
    buffers: dict[str, Tensor] = {}
    for name, layer in dash_layers(model).items():
        if cast(DashProduct, layer.product).started:
            buffers |= {f"{name}.product.{part}": getattr(layer.product, part) for part in ("u", "v", "chosen")}
    return buffers


@torch.no_grad()
def _choose(layer: LowRankLayer) -> list[int]:
    product = cast(DashProduct, layer.product)
    if not product.started:
        weight = cast(Linear, as_linear("", layer)).weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        u, s, v = torch.linalg.svd(weight.to(wide), full_matrices=False)  # [out, n], [n], [n, in]
        moved = ((u.t() @ product.b.to(wide)) * (v @ product.a.to(wide).t())).sum(1) * product.scale
        rate = moved.abs() / (s + FLOOR * s[0]).clamp_min(torch.finfo(wide).tiny)
        best = torch.sort(rate, descending=True, stable=True).indices[: len(product.c)]
        product.u.copy_(u[:, best])
        product.v.copy_(v[best])
        product.chosen.copy_(best)
    return cast(list[int], product.chosen.tolist())
