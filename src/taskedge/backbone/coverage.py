"""Coverage: the share of a model's blocks that can carry entries, and the weights that cannot, by name and kind.

Entries live in layers that have an adapter (:mod:`taskedge.backbone.layers`). Some models store weights elsewhere, such
as the projections of XLNet, which are parameters of its attention. Selection leaves such weights out, while a budget is
a share of all parameters, so what is left out should be known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskedge.backbone.blocks import blocks
from taskedge.backbone.candidates import default_candidates, head_parameters, unusable_linears
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import linears

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_MAX_SHOWN = 4


@dataclass(frozen=True)
class LeftOut:
    """Parameters of one name pattern that carry no entries by default.

    Attributes:
        pattern: their names, with ``*`` for numbers, such as ``"model.layers.*.mlp.experts.down_proj"``.
        reason: why: the kind of the parameter, or why its layer cannot carry entries.
        tensors: how many parameters have a name of this pattern.
        parameters: numbers in them.
    """

    pattern: str
    reason: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class Coverage:
    """How much of a model's blocks (without blocks: of the model but its head) can carry entries.

    Attributes:
        parameters: numbers in all parameters of the blocks.
        covered: numbers in the weights that can carry entries by default.
        vectors: numbers in biases, norms and other vectors, which carry no entries and can be trained in full.
        left_out: weights of two and more dimensions that carry no entries, largest first.
        has_blocks: whether the model has blocks.
    """

    parameters: int
    covered: int
    vectors: int
    left_out: tuple[LeftOut, ...]
    has_blocks: bool = True

    @property
    def share(self) -> float:
        """Share of the parameters that can carry entries."""
        return self.covered / self.parameters if self.parameters else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "parameters": self.parameters,
            "covered": self.covered,
            "vectors": self.vectors,
            "left_out": [vars(weights) for weights in self.left_out],
        }

    def __str__(self) -> str:
        scope = "of the blocks" if self.has_blocks else "outside the head"
        text = f"entries can be in {self.covered:,} of {self.parameters:,} parameters {scope} ({self.share:.1%})"
        if not self.left_out:
            return f"{text}; the others are {self.vectors:,} biases and norms" if self.vectors else text
        shown = [
            f"{weights.pattern} ({weights.parameters:,}: {weights.reason})" for weights in self.left_out[:_MAX_SHOWN]
        ]
        more = self.left_out[_MAX_SHOWN:]
        if more:
            shown.append(f"{len(more)} more ({sum(weights.parameters for weights in more):,})")
        return f"{text}, not in {', '.join(shown)}"


def coverage(model: nn.Module) -> Coverage:
    """Return how much of a model's blocks can carry entries if no layers are named. The weights are not read."""
    inside = tuple(f"{block.name}." for block in blocks(model))
    head = set(head_parameters(model))
    in_scope = {
        name: parameter
        for name, parameter in model.named_parameters()
        if (name.startswith(inside) if inside else name not in head)
    }
    every = linears(model)
    sizes = {name: parameter.numel() for name, parameter in in_scope.items()}
    coded = {linear.parameter: math.prod(linear.shape) for linear in every.values() if linear.is_read_only}
    sizes |= {name: size for name, size in coded.items() if name in sizes}
    unusable = unusable_linears(model, every)
    carrying = {every[name].parameter for name in default_candidates(model, every, unusable)}
    stopped = {every[name].parameter: reason for name, reason in unusable.items()}
    covered, vectors = 0, 0
    groups: dict[tuple[str, str], list[int]] = {}
    for name, parameter in in_scope.items():
        if name in carrying:
            covered += sizes[name]
        elif parameter.dim() < 2:
            vectors += parameter.numel()
        else:
            owner = name.rpartition(".")[0]
            if name in stopped:
                reason = stopped[name]
            elif owner in every and name.endswith("weight"):
                reason = f"{type(every[owner].module).__name__}, which carries entries only if it is named"
            else:
                reason = f"{parameter.dim()}-D parameters of {type(model.get_submodule(owner)).__name__}"
            groups.setdefault((_NUMBER.sub("*", name), reason), []).append(sizes[name])
    left_out = [LeftOut(pattern, reason, len(sizes), sum(sizes)) for (pattern, reason), sizes in groups.items()]
    total = sum(sizes.values())
    left_out.sort(key=lambda weights: -weights.parameters)
    return Coverage(total, covered, vectors, tuple(left_out), bool(inside))


def log_coverage(model: nn.Module, log: Callable[[str], object]) -> None:
    """Log which share of the blocks can carry entries, unless all parameters can."""
    found = coverage(model)
    if found.covered < found.parameters:
        log(str(found))


def experts_text(model: nn.Module, names: Collection[str]) -> str:
    """Return a line about how the experts among the linears ``names`` run; empty if there are none."""
    layers = linears(model)
    count = sum(isinstance(layers[name].module, ExpertLinear) for name in names)
    if not count:
        return ""
    fused = getattr(getattr(model, "config", None), "_experts_implementation", None)
    return (
        f"{count} of {len(names)} linears are of experts: in training each runs by itself, as in the implementation "
        f"'eager' of transformers; eval and predict run the base's own ({fused!r})"
    )


def idle_text(model: nn.Module, idle: Collection[str]) -> str:
    """Return a line about linears that never ran on the calibration batches, and so carry no entries.

    Args:
        model: the model.
        idle: their names.
    """
    layers = linears(model)
    num_experts = sum(isinstance(layers[name].module, ExpertLinear) for name in idle)
    kinds = [f"{num_experts} of experts that no token was routed to"] if num_experts else []
    if len(idle) > num_experts:
        kinds.append(f"{len(idle) - num_experts} whose weight the model reads without calling them, if at all")
    shown = [*idle][:_MAX_SHOWN] + ([f"{len(idle) - _MAX_SHOWN} more"] if len(idle) > _MAX_SHOWN else [])
    return (
        f"left out: {len(idle)} {'linear' if len(idle) == 1 else 'linears'} that never ran on the calibration batches "
        f"({', '.join(kinds)}): {', '.join(shown)}"
    )
