"""Networks with frozen gates, without the rows that no answer depends on (:mod:`.feature_cost`).

Kept rows have the values of the uncut network. Products of fewer rows have the same bits where the kernels of torch add
up in the same order for both shapes.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskedge.training.many.feature_cost import FeatureCost, NeededRows, needed_rows
from taskedge.training.many.feature_gates import FeatureGates, FeatureLinear, mixed, stacked


class CutLinear(nn.Module):
    """The needed rows of a gated linear; streams and rows that are not needed are 0.

    Args:
        layer: uncut.
        own: bool [tasks, out], its needed rows of the tasks.
        shared: bool [out], those of the shared stream.
        has_mixture: whether the shared stream is needed after it.
    """

    def __init__(self, layer: FeatureLinear, own: Tensor, shared: Tensor, has_mixture: bool) -> None:
        super().__init__()
        self.has_mixture = has_mixture
        self.register_buffer("gates", layer.alpha.detach() > 0)
        self.register_buffer("beta", layer.beta.detach().clone())
        self.rows = [kept.nonzero().flatten() for kept in (shared, *own)]
        self.weights = nn.ParameterList(
            layer.weight[stream][rows].detach().clone() for stream, rows in enumerate(self.rows)
        )
        bias = layer.bias
        self.biases = (
            None
            if bias is None
            else nn.ParameterList(bias[stream][rows].detach().clone() for stream, rows in enumerate(self.rows))
        )

    def features(self, stream: int, x: Tensor) -> Tensor:
        """Return the product of one stream."""
        rows = self.rows[stream]
        made = x.new_zeros(*x.shape[:-1], cast(Tensor, self.beta).shape[1])
        if len(rows):
            bias = None if self.biases is None else self.biases[stream]
            made[..., rows] = functional.linear(x, self.weights[stream], bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Return gated and mixed features of stacked streams, [(1 + tasks)·rows, ..., out]."""
        own = [self.features(stream, part) for stream, part in enumerate(x.chunk(len(self.rows)))]
        gates = cast(Tensor, self.gates).to(x.dtype)
        read = [gate * each + (1 - gate) * own[0] for gate, each in zip(gates, own[1:], strict=True)]
        shared = mixed(read, cast(Tensor, self.beta)) if self.has_mixture else torch.zeros_like(read[0])
        return torch.cat([shared, *read])


class CutFeatures(nn.Module):
    """All tasks in one pass over the needed rows.

    Args:
        model: its gates are read where they are now; it is not changed.
        residual: features skip linears; without it the gated linears must be a chain, in the order of their names.

    Attributes:
        needed: the rows that were kept.
        cost: of a pass, in networks.
    """

    def __init__(self, model: FeatureGates, *, residual: bool) -> None:
        super().__init__()
        layers = model.layers
        self.needed: NeededRows = needed_rows([alpha.detach() > 0 for alpha in model.alphas], residual=residual)
        self.cost = self.needed.cost(FeatureCost.of_model(model))
        self.trunk = copy.deepcopy(model.trunk)
        self.heads = model.heads
        for index, (name, layer) in enumerate(layers.items()):
            parent, _, key = name.rpartition(".")
            cut = CutLinear(layer, self.needed.own[index], self.needed.shared[index], self.needed.mixed[index])
            setattr(self.trunk.get_submodule(parent), key, cut)

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> list[Tensor]:
        """Return the output of each task for one batch."""
        streams = 1 + len(self.heads)
        features: Tensor = self.trunk(
            *(stacked(each, streams) for each in inputs), **{key: stacked(each, streams) for key, each in named.items()}
        )
        return [head(part) for head, part in zip(self.heads, features.chunk(streams)[1:], strict=True)]
