"""TAPS: whole layers that a task changes, chosen by a gate on each while the changes train.

A layer computes with ``W + 1[s >= threshold]·Δ``. The step has no derivative, so the score s gets that of the product:
``∂L/∂s = <∂L/∂W', Δ>``, also while its gate is closed, so that it can open again. Δ gets ``∂L/∂W'`` while the gate is
open. All gates start open and all changes at 0. A penalty on the mean of the scores
(:mod:`taskedge.training.layer_gates`) closes the gates of layers that the task does not need.

Source: TAPS (arXiv 2203.16708) and its published code. This project: layers of any class that can carry entries.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.layers import Linear, stored_weight
from taskedge.errors import InputError
from taskedge.forms.master_weights import FixedDtypeModule

GATE_THRESHOLD = 0.1
"""A gate is open while its score is at least this."""
GATE_START = 0.15
"""Score at the start: all gates are open."""
GATE_LEARNING_RATE = 1e-3
"""Peak learning rate of scores, with AdamW. Under the penalty alone a gate closes in about 50 steps of it."""


class LayerGate(FixedDtypeModule):
    """The score of one layer, which opens and closes its change.

    Attributes:
        score: float32 [1], trained.
        threshold: the gate is open from this score on.
        rate: peak learning rate of the score.
    """

    def __init__(self, threshold: float, rate: float, device: torch.device) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.full((1,), GATE_START, device=device))
        self.threshold, self.rate = threshold, rate

    @property
    def is_open(self) -> bool:
        """Whether the layer has its change now."""
        return bool(self.score.detach() >= self.threshold)

    def through(self, change: Tensor, base: Tensor | None = None) -> Tensor:
        """Return ``base + 1[open]·change`` in the dtype of the base, connected to the change and to the score.

        Args:
            change: of any shape.
            base: of the same shape; None for 0.
        """
        through: Tensor = _Gate.apply(change, self.score, base, self.is_open)  # type: ignore[no-untyped-call]
        return through


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, change: Tensor, score: Tensor, base: Tensor | None, is_open: bool
    ) -> Tensor:
        ctx.save_for_backward(change)
        ctx.is_open = is_open
        if base is None:
            return change.detach() if is_open else torch.zeros_like(change)
        return changed(base, change) if is_open else base.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (change,) = ctx.saved_tensors
        gradient = gradient.to(change.dtype)
        of_score = (gradient * change).sum().view(1) if ctx.needs_input_grad[1] else None
        return gradient if ctx.is_open else None, of_score, None, None


def changed(base: Tensor, change: Tensor) -> Tensor:
    """Return ``base + change`` in the base's dtype: computed in the wider of both, and rounded once."""
    return (base.to(torch.promote_types(base.dtype, change.dtype)) + change).to(base.dtype)


class TapsLayer(nn.Module):
    """A layer while its whole weight may change: the same object under another class, with a ``taps_gate``.

    Attributes:
        taps_gate: its gate.
        taps_change: float32 in the layout of the stored weight, trained: Δ.
    """

    keeps_forward = True  # it computes the same as the class below, with another weight
    taps_gate: LayerGate
    taps_change: nn.Parameter

    @property
    def weight(self) -> Tensor:
        """The weight with the change, if the gate is open."""
        base, gate = stored_weight(self), self.taps_gate
        if torch.is_grad_enabled():
            return gate.through(self.taps_change, base.detach())
        return changed(base, self.taps_change) if gate.is_open else base


def check_whole(linear: Linear) -> None:
    """Raise InputError if the whole weight of the linear cannot change."""
    if isinstance(linear.module, ExpertLinear):
        raise InputError(
            f"linear {linear.name!r} is one of several experts, whose weights share a tensor: it cannot change whole"
        )
    if linear.is_read_only:
        raise InputError(
            f"the weight of linear {linear.name!r} is read-only (coded or mapped from a file), so it cannot change "
            "whole: load the base with weight storage 'resident'"
        )


def make_taps(linear: Linear, threshold: float, rate: float) -> TapsLayer:
    """Let the whole weight of the linear change behind a gate; :func:`fuse_taps` undoes it."""
    check_whole(linear)
    module = linear.module
    module.requires_grad_(False)
    stored = stored_weight(module)
    dtype = torch.promote_types(stored.dtype, torch.float32)
    swap_class(module, TapsLayer, "Taps")
    module.add_module("taps_gate", LayerGate(threshold, rate, stored.device))
    module.register_parameter("taps_change", nn.Parameter(torch.zeros_like(stored, dtype=dtype)))
    return cast(TapsLayer, module)


@torch.no_grad()
def fuse_taps(layer: TapsLayer) -> nn.Module:
    """Make the layer plain again, with the change in its weight if the gate is open."""
    stored, change = stored_weight(layer), layer.taps_change
    if layer.taps_gate.is_open:  # a zero of the base keeps its sign where nothing was learned
        stored.copy_(torch.where(change == 0, stored, changed(stored, change)))
    del layer.taps_gate, layer.taps_change
    restore_class(layer)
    return layer


def taps_layers(model: nn.Module) -> dict[str, TapsLayer]:
    """Return the layers of the model whose whole weight may change, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TapsLayer)}


def layer_gates(model: nn.Module) -> dict[str, LayerGate]:
    """Return all gates on layers of the model, by the name of the layer."""
    gates = {name: module for name, module in model.named_modules() if isinstance(module, LayerGate)}
    return {name.rpartition(".")[0].removesuffix(".entries"): gate for name, gate in gates.items()}
