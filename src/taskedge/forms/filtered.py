"""LoRATRF: low-rank products, and a second one on those parts of the hidden state that a trained filter lets through.

With h the output of the base's layer, it computes ``h + scale·BA·x + D·C(φ(h)·h)``. The filter φ is a cosine with a
trained vector, ``clip(cos(h, v), 0, 1)``, or a gate for each number, ``sigmoid(W₂·relu(W₁·h))``. D starts at 0, so
training starts from the base. φ depends on the input of the layer: no weight computes the same, so the change cannot be
fused.

Source: LoRATRF (arXiv 2412.09827), of which only the abstract could be read: low-rank adaptation with a filter of
hidden representations for the task. The filters, their place, their start and their defaults are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.class_swap import restore_class
from taskedge.backbone.layers import linears
from taskedge.errors import InputError, did_you_mean
from taskedge.forms.low_rank import (
    Factors,
    LowRankLayer,
    Product,
    check_rank,
    extensible_layers,
    low_rank_layers,
    make_low_rank,
)
from taskedge.forms.master_weights import FixedDtypeModule

FILTERS = {"cosine": ("c", "d", "v"), "gate": ("c", "d", "w1", "w2")}
"""Tensors of each kind of filter: C [rank, out], D [out, rank], v [out], W₁ [rank, out], W₂ [out, rank]."""
CANNOT_BE_FUSED = (
    "a filter weights hidden states by their content, so no weight computes the same: the change cannot be fused into "
    "the base"
)


class HiddenFilter(FixedDtypeModule):
    """The filtered product of one layer; its parameters are those that :data:`FILTERS` names, float32.

    Args:
        kind: a key of ``FILTERS``.
        tensors: its parameters, by name.
    """

    def __init__(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kind = kind
        for name in FILTERS[kind]:
            self.register_parameter(name, nn.Parameter(tensors[name]))

    @classmethod
    def draw(cls, kind: str, out: int, rank: int, generator: torch.Generator, device: torch.device) -> HiddenFilter:
        """Return a filter at its start: D is 0, v normal, and the other factors uniform within ±1/√in as in LoRA."""
        tensors: dict[str, Tensor] = {}
        for name in FILTERS[kind]:
            shape = {"v": (out,), "d": (out, rank), "w2": (out, rank)}.get(name, (rank, out))
            tensor = torch.zeros(shape)
            if name == "v":
                tensor.normal_(generator=generator)
            elif name != "d":
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=generator)
            tensors[name] = tensor.to(device)
        return cls(kind, tensors)

    def share(self, hidden: Tensor) -> Tensor:
        """Return φ(h) in [0, 1] for hidden states [..., out]: [..., 1] of a cosine, [..., out] of a gate.

        A state of zeros has a cosine of 0. No state depends on others, so padding changes nothing.
        """
        if self.kind == "cosine":
            v = cast(Tensor, self.v)
            cosine: Tensor = F.cosine_similarity(hidden, v, dim=-1, eps=1e-8).clamp(0, 1)
            return cosine.unsqueeze(-1)
        inner = F.relu(F.linear(hidden, cast(Tensor, self.w1)))
        return torch.sigmoid(F.linear(inner, cast(Tensor, self.w2)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return D·C(φ(h)·h) [..., out] of hidden states [..., out]."""
        c, d = cast(Tensor, self.c), cast(Tensor, self.d)
        hidden = hidden.to(c.dtype)
        return F.linear(F.linear(self.share(hidden) * hidden, c), d)


class FilteredProduct(Product):
    """The trained factors of one linear, and the filter of its output.

    Attributes:
        filter: the filtered product.
    """

    filter: HiddenFilter

    def added(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added to the output [..., out] of the base's layer for the input x."""
        added: Tensor = self(x) + self.filter(output)
        return added

    def factors(self) -> tuple[Tensor, Tensor]:
        """Raise InputError: there are no factors of the whole change."""
        raise InputError(f"{CANNOT_BE_FUSED}; extract a delta and apply it instead")


def add_filters(model: nn.Module, kind: str, rank: int, seed: int = 0) -> None:
    """Give every installed low-rank product a filter of the output of its layer.

    Args:
        model: has low-rank products installed.
        kind: ``"cosine"`` or ``"gate"``.
        rank: rank of the filtered products.
        seed: for drawing the factors.

    Raises:
        InputError: an unknown kind or rank, or the model has no low-rank products. The model is unchanged.
    """
    if kind not in FILTERS:
        raise InputError(f"unknown filter {kind!r}{did_you_mean(kind, FILTERS)} (known: {', '.join(FILTERS)})")
    check_rank("the filter", rank)
    layers = extensible_layers(model, "filters")
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        b = layer.product.b
        _set_filter(layer.product, HiddenFilter.draw(kind, len(b), rank, generator, b.device))


def filtered_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """Return the layers of the model that have a filter, by name."""
    return {name: layer for name, layer in low_rank_layers(model).items() if isinstance(layer.product, FilteredProduct)}


def attach_filtered(
    model: nn.Module,
    products: Mapping[str, tuple[Tensor, Tensor, float]],
    filters: Mapping[str, tuple[str, Mapping[str, Tensor]]],
) -> None:
    """Let layers of a plain model compute with products and filters that do not train; those that do already, stay.

    Args:
        model: the base.
        products: A, B and the scale, by linear.
        filters: kind and tensors, by linear.

    Raises:
        InputError: a linear cannot carry a product.
    """
    layers = linears(model)
    for name, (kind, tensors) in filters.items():
        if isinstance(layers[name].module, LowRankLayer):
            continue
        a, b, scale = products[name]
        layer = make_low_rank(layers[name], len(a), Factors(torch.Generator(), scale * len(a)))
        device = layer.product.a.device
        layer.product.a, layer.product.b = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
        copies = {part: tensor.to(device) for part, tensor in tensors.items()}
        _set_filter(layer.product, HiddenFilter(kind, copies))
        layer.product.requires_grad_(False)


def remove_filtered(model: nn.Module) -> None:
    """Make layers with filters plain again, with the weights of the base."""
    for layer in filtered_layers(model).values():
        del layer.product
        restore_class(layer)


def filter_state(layer: LowRankLayer) -> tuple[str, dict[str, Tensor]]:
    """Return kind and tensors of the filter of a layer: copies on the CPU."""
    hidden_filter = cast(FilteredProduct, layer.product).filter
    tensors: dict[str, Any] = dict(hidden_filter.named_parameters())
    return hidden_filter.kind, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _set_filter(product: Product, hidden_filter: HiddenFilter) -> None:
    product.__class__ = FilteredProduct
    product.add_module("filter", hidden_filter)
