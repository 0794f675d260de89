"""InterroGate: T task networks and a shared one, with a gate for each task and channel of each layer.

A linear has a weight for the shared stream and one for each task. With the task's features ``φ_t = W_t·φ'_t`` of the
layer before, the shared features ``ψ = W_0·ψ'`` and gates G that are 0 or 1,

    φ'_t = G_t∘φ_t + (1 - G_t)∘ψ        what task t reads
    ψ'   = Σ_t softmax_t(β)∘φ'_t        what the next shared layer reads

All streams run as one batch, the shared one first, so layers without weights for the streams need no change.

Source: InterroGate (arXiv 2402.16848). Reviews name its equations, which were not available to this project: the form
is a reconstruction. The start of the gates and their cost (:mod:`.feature_cost`) are this project's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from taskedge.errors import InputError
from taskedge.training.many.row_gates import START, hard_gates


class FeatureLinear(nn.Module):
    """A linear with a weight for the shared stream and for each task, gates and a mixture.

    Args:
        linear: gives all streams their start.
        num_tasks: tasks.

    Attributes:
        weight: [1 + tasks, out, in], the shared one first; bias: [1 + tasks, out] or None.
        alpha, beta: [tasks, out], logits of the gates and of the mixture.
        frozen: whether gates have no gradient.
    """

    def __init__(self, linear: nn.Linear, num_tasks: int) -> None:
        super().__init__()
        streams = 1 + num_tasks
        self.weight = nn.Parameter(linear.weight.detach().expand(streams, -1, -1).clone())
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().expand(streams, -1).clone())
        self.alpha = nn.Parameter(torch.full((num_tasks, linear.out_features), START))
        self.beta = nn.Parameter(torch.zeros(num_tasks, linear.out_features))
        self.frozen = False

    def features(self, stream: int, x: Tensor) -> Tensor:
        """Return the product of one stream."""
        return functional.linear(x, self.weight[stream], None if self.bias is None else self.bias[stream])

    def forward(self, x: Tensor) -> Tensor:
        """Return gated and mixed features of stacked streams, [(1 + tasks)·rows, ..., out]."""
        streams = len(self.weight)
        own = [self.features(stream, part) for stream, part in enumerate(x.chunk(streams))]
        gates = hard_gates(self.alpha)
        if self.frozen:
            gates = gates.detach()
        read = [gate * each + (1 - gate) * own[0] for gate, each in zip(gates, own[1:], strict=True)]
        return torch.cat([mixed(read, self.beta), *read])


def mixed(read: Sequence[Tensor], beta: Tensor) -> Tensor:
    """Return ``Σ_t softmax_t(β)∘φ'_t``."""
    shares = beta.softmax(0)
    total = shares[0] * read[0]
    for share, each in zip(shares[1:], read[1:], strict=True):
        total = total + share * each
    return total


class FeatureGates(nn.Module):
    """T networks of one architecture that share features where their gates choose so.

    Args:
        trunk: what all tasks have, whose output is a tensor with rows in its first dimension; it is copied.
        heads: of the tasks; they are not copied.
        names: the linears of the trunk that get gates; by default all. Other parameters are common to all streams.

    Raises:
        InputError: fewer than two heads, or a name that is no linear.
    """

    def __init__(self, trunk: nn.Module, heads: Sequence[nn.Module], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if len(heads) < 2:
            raise InputError(f"{len(heads)} tasks share nothing: give the heads of two or more")
        self.trunk = copy.deepcopy(trunk)
        self.heads = nn.ModuleList(heads)
        found = {name: module for name, module in self.trunk.named_modules() if isinstance(module, nn.Linear)}
        self.names = tuple(found) if names is None else tuple(names)
        if not self.names:
            raise InputError(f"{type(trunk).__name__} has no linears that tasks could share")
        for name in self.names:
            if name not in found:
                raise InputError(f"{name!r} is no linear of {type(trunk).__name__}: name some of {', '.join(found)}")
            parent, _, key = name.rpartition(".")
            setattr(self.trunk.get_submodule(parent), key, FeatureLinear(found[name], len(heads)))

    @property
    def layers(self) -> dict[str, FeatureLinear]:
        """The gated linears by name, input side first."""
        return {name: cast(FeatureLinear, self.trunk.get_submodule(name)) for name in self.names}

    @property
    def alphas(self) -> list[nn.Parameter]:
        """The logits of all gates, [tasks, out] for each linear."""
        return [layer.alpha for layer in self.layers.values()]

    @torch.no_grad()
    def start_from(self, task: int, trunk: nn.Module) -> None:
        """Give a task the weights of a trunk that was trained for it alone."""
        for name, layer in self.layers.items():
            single = cast(nn.Linear, trunk.get_submodule(name))
            layer.weight[1 + task].copy_(single.weight)
            if layer.bias is not None:
                layer.bias[1 + task].copy_(single.bias)

    def freeze_gates(self) -> None:
        """Fix the gates."""
        for layer in self.layers.values():
            layer.frozen = True
            layer.alpha.requires_grad_(False)

    def forward(self, *inputs: Any, **named: Any) -> list[Tensor]:
        """Return the output of each task for one batch."""
        streams = 1 + len(self.heads)
        features = self.trunk(
            *(stacked(each, streams) for each in inputs), **{key: stacked(each, streams) for key, each in named.items()}
        )
        return [head(part) for head, part in zip(self.heads, features.chunk(streams)[1:], strict=True)]


def stacked(value: Any, streams: int) -> Any:
    """Return a tensor with its rows once for each stream; other values as they are."""
    return value.repeat(streams, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value
