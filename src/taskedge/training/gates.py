"""Gates on the weights of a model: ``θ = θ⁰ + z_g·z·w`` with hard concrete gates z and, for each matrix, one gate z_g.

The model keeps its modules and its forward pass. At the begin of an optimizer step :meth:`Gates.write` draws the gates
and writes θ into the model's own parameters; the passes of the step add up the gradient of θ there; then
:meth:`Gates.backward` turns it into the gradients of w and of the gates, with the same draw. A draw follows from the
seed and the step, so there is no state of it to keep.

Source: diff pruning (arXiv 2012.07463).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from taskedge.selection.hard_concrete import HardConcrete, uniform_like
from taskedge.training.data_order import derive_seed
from taskedge.training.selection_settings import GATE_PENALTY, SelectionSettings
from taskedge.training.trainer_config import DEFAULTS

PHASE_BYTES = 32
"""Bytes for each gated weight beside three in the dtype of the model: w, alpha, gradients and moments of both, in fp32.

The three are the base's value, the present value and its gradient: eleven copies in all.
"""


_SETTINGS = SelectionSettings.model_fields


@dataclass(frozen=True)
class GateConfig:
    """How gates are made and trained. Defaults: those of the settings, else the published code's.

    Attributes:
        structured: whether each matrix has a gate of its own beside those of its weights.
        group_penalty: ``"sum"``, as in the published code, ``Σ_i p_i + Σ_g p_g``, where p is the probability that a
            gate is open, or ``"product"``, as in the paper, the expected number of open weights ``Σ_g p_g·Σ_i p_i``.
            The product closes whole matrices in runs of some hundred steps, whatever they are worth.
        penalty: weight λ of the penalty times the number of gated weights, so that it suits models of every size.
        gate_lr: learning rate of the gates, constant.
        start: alpha at the start.
        clip: largest norm of the gradient of w (with the head), and of that of the gates; 0 for no clipping.
        gate: the interval of the gates.
    """

    structured: bool = _SETTINGS["gates"].default == "structured"
    group_penalty: Literal["product", "sum"] = _SETTINGS["group_penalty"].default
    penalty: float = GATE_PENALTY
    gate_lr: float = 0.1
    start: float = 5.0
    clip: float = DEFAULTS.clip
    gate: HardConcrete = field(default_factory=HardConcrete)


class Gates(nn.Module):
    """Changes w and gates of some parameters of a model.

    Args:
        parameters: the parameters, by name; their values now are the base's.
        config: settings.
        seed: of all draws.

    Attributes:
        names: of the parameters.
        w: changes, one for each parameter, in fp32 at least.
        alpha: gates of the same shapes.
        group_alpha: one number for each parameter; empty without group gates.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: GateConfig, seed: int) -> None:
        super().__init__()
        self.names = list(parameters)
        self.config, self._seed = config, seed
        self._theta: Sequence[nn.Parameter] = tuple(parameters.values())
        self._base = [parameter.detach().clone() for parameter in parameters.values()]
        values = [base.to(torch.promote_types(base.dtype, torch.float32)) for base in self._base]
        self.w = nn.ParameterList(nn.Parameter(torch.zeros_like(value)) for value in values)
        self.alpha = nn.ParameterList(nn.Parameter(torch.full_like(value, config.start)) for value in values)
        groups = values if config.structured else []
        self.group_alpha = nn.ParameterList(nn.Parameter(value.new_full((1,), config.start)) for value in groups)

    @property
    def num_gates(self) -> int:
        """Number of gated weights."""
        return sum(base.numel() for base in self._base)

    @torch.no_grad()
    def expected_nonzero(self) -> float:
        """Return the expected number of weights with an open gate."""
        total = 0.0
        for index, alpha in enumerate(self.alpha):
            open_weights = float(self.config.gate.nonzero_probability(alpha).sum(dtype=torch.float64))
            if self.group_alpha:
                open_weights *= float(self.config.gate.nonzero_probability(self.group_alpha[index]))
            total += open_weights
        return total

    @torch.no_grad()
    def change(self, index: int, draw: int | str) -> Tensor:
        """Return the change ``z_g·z·w`` of one parameter in one draw, in the dtype of w."""
        u, u_group = self._uniform(index, draw)
        change: Tensor = self.config.gate.gate(self.alpha[index], u) * self.w[index]
        return change if u_group is None else change * self.config.gate.gate(self.group_alpha[index], u_group)

    @torch.no_grad()
    def write(self, draw: int | str) -> None:
        """Draw the gates and write ``θ⁰ + z_g·z·w`` into the parameters of the model."""
        for index, (parameter, base) in enumerate(zip(self._theta, self._base, strict=True)):
            change = self.change(index, draw)
            parameter.copy_(torch.where(change == 0, base, (base + change).to(base.dtype)))

    @torch.no_grad()
    def backward(self, draw: int | str) -> None:
        """Set the gradients of w and of the gates from those of the parameters, for the same draw, with the penalty.

        A parameter without a gradient counts as one whose gradient is 0.
        """
        gate = self.config.gate
        weight = self.config.penalty / max(self.num_gates, 1)
        for index, parameter in enumerate(self._theta):
            w, alpha = self.w[index], self.alpha[index]
            gradient = torch.zeros_like(w) if parameter.grad is None else parameter.grad.to(w.dtype)
            u, u_group = self._uniform(index, draw)
            z, slope = gate.gate_and_slope(alpha, u)
            pressure = weight * gate.nonzero_slope(alpha)
            if u_group is None:
                w.grad, alpha.grad = gradient * z, gradient * w * slope + pressure
                continue
            group = self.group_alpha[index]
            z_group, slope_group = gate.gate_and_slope(group, u_group)
            w.grad = gradient * z * z_group
            alpha.grad = gradient * w * z_group * slope
            group.grad = (gradient * w * z).sum().view(1) * slope_group
            if self.config.group_penalty == "product":
                alpha.grad += pressure * gate.nonzero_probability(group)
                group.grad += weight * gate.nonzero_slope(group) * gate.nonzero_probability(alpha).sum()
            else:
                alpha.grad += pressure
                group.grad += weight * gate.nonzero_slope(group)

    @torch.no_grad()
    def show_changes(self, draw: int | str) -> None:
        """Put the changes of one draw in the place of the model's weights, to be read through its layers."""
        for index, parameter in enumerate(self._theta):
            parameter.data = self.change(index, draw)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters of the model the values of the base back."""
        for parameter, base in zip(self._theta, self._base, strict=True):
            parameter.data = base
            parameter.grad = None

    def _uniform(self, index: int, draw: int | str) -> tuple[Tensor, Tensor | None]:
        """Return u of the gates of one parameter, and of its group gate."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "gates", draw, index))
        u = uniform_like(self.alpha[index], generator)
        return u, uniform_like(self.group_alpha[index], generator) if self.group_alpha else None
