"""Selection rules: functions that score every weight of a linear for a task.

A rule is a function ``(weight, statistics, generator) -> scores``, registered with the statistics that it needs::

    @rule("squared", needs=(INPUTS,))
    def squared(weight, statistics, generator):
        "Squared weight times input activation: large weights count for more."
        return weight.float().square() * statistics.input_norm

``weight`` is [out, in] of any float dtype and must not be changed, ``scores`` are float32 [out, in], and weights with
larger scores are chosen first. ``generator`` is for rules that draw random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.registry import Registry
from taskedge.selection.allocations import Scores, Shapes
from taskedge.selection.spt import SelectedParameters, select_hybrid
from taskedge.selection.statistics import ABSOLUTE_INPUTS, GRADIENTS, INPUTS, SQUARED_GRADIENTS, LinearStatistics

Score = Callable[[Tensor, LinearStatistics, torch.Generator], Tensor]
Choose = Callable[[Shapes, Scores, Mapping[str, Tensor], int, int], SelectedParameters]
"""(shapes, scores of the linears, ``Σ_batches g²`` of biases and norms, budget in parameters, rank) -> selection."""


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        name: name in :data:`RULES`.
        score: the function.
        needs: statistics that it reads.
        choose: spends the budget in place of an allocation, on entries, low-rank modules, biases and norms.
    """

    name: str
    score: Score
    needs: tuple[str, ...]
    choose: Choose | None = None

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients of the loss."""
        return self.choose is not None or not {GRADIENTS, SQUARED_GRADIENTS}.isdisjoint(self.needs)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.score.__doc__ or "").strip().partition("\n")[0]


RULES: Registry[Rule] = Registry("rule", __name__)


def rule(name: str, *, needs: tuple[str, ...] = (), choose: Choose | None = None) -> Callable[[Score], Score]:
    """Register a score function.

    Args:
        name: name of the rule.
        needs: statistics that it reads (:mod:`taskedge.selection.statistics`).
        choose: see :class:`Rule`.
    """

    def register(score: Score) -> Score:
        RULES.add(name, Rule(name, score, needs, choose))
        return score

    return register


@rule("taskedge", needs=(INPUTS,))
def taskedge(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude times input activation, ``|W_ij|·‖X_j‖₂``.

    Source: TaskEdge (arXiv 2504.03718); the l2 form is from Wanda (arXiv 2306.11695, equation 1).
    """
    return weight.float().abs() * statistics.input_norm


@rule("mean_activation", needs=(ABSOLUTE_INPUTS,))
def mean_activation(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude times mean input magnitude, ``|W_ij|·mean|x_j|``: rare large inputs count for less.

    Source: FPS (arXiv 2510.27359).
    """
    return weight.float().abs() * statistics.input_mean


@rule("activation", needs=(INPUTS,))
def activation(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Input activation alone, ``‖X_j‖₂``: all neurons of a linear choose the same inputs, so few columns are stored."""
    return statistics.input_norm.expand_as(weight)


@rule("gradient", needs=(GRADIENTS,))
def gradient(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Magnitude of the loss gradient, ``|∂L/∂W_ij|``, L summed over the calibration batches.

    Source: GPS (arXiv 2312.10136).
    """
    return statistics.gradient.abs_()  # a copy that was read from the disk


@rule("fisher", needs=(SQUARED_GRADIENTS,))
def fisher(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Fisher information, ``E[g²]``, g the loss gradient of one calibration batch; computed as the sum, same order.

    Squares are taken per batch, not per row: smaller batches come closer to the diagonal of the Fisher matrix.
    Source: TR-PTS (arXiv 2507.22872); its budget per layer is the allocation ``global_per_neuron``.
    """
    return statistics.squared_gradient


@rule("spt", needs=(SQUARED_GRADIENTS,), choose=select_hybrid)
def spt(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Sensitivity, ``Σ_batches g²``, for entries, low-rank modules, and biases and norms under one budget.

    Source: SPT (arXiv 2303.08566); how the budget is met is this project's (:mod:`taskedge.selection.spt`).
    """
    return statistics.squared_gradient


@rule("magnitude")
def magnitude(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Weight magnitude alone, ``|W_ij|``: a control that reads no data."""
    return weight.float().abs()


@rule("magnitude_bottom")
def magnitude_bottom(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """The smallest weights first, ``-|W_ij|``: a control that reads no data."""
    return -weight.float().abs()


@rule("random")
def random(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the control that every other rule must beat."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
