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
from taskedge.selection.gradient_sums import GRADIENT_STATISTICS
from taskedge.selection.spt import SelectedParameters, select_hybrid
from taskedge.selection.statistics import (
    ABSOLUTE_INPUTS,
    CHANGES,
    FIRST_GRADIENTS,
    GRADIENTS,
    INPUTS,
    SQUARED_GRADIENTS,
    LinearStatistics,
)

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
        min_batches: fewest calibration batches on which its scores differ.
    """

    name: str
    score: Score
    needs: tuple[str, ...]
    choose: Choose | None = None
    min_batches: int = 1

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients of the loss, or what training with them changed."""
        return self.choose is not None or self.needs_dense_run or not GRADIENT_STATISTICS.isdisjoint(self.needs)

    @property
    def needs_dense_run(self) -> bool:
        """Whether all weights have to be trained first."""
        return CHANGES in self.needs

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.score.__doc__ or "").strip().partition("\n")[0]


PRINCIPAL_RANK = 32
"""Singular values that the rule ``principal`` keeps, as LIFT does in a model of 1 B parameters (its filter rank)."""

RULES: Registry[Rule] = Registry("rule", __name__)


def rule(
    name: str, *, needs: tuple[str, ...] = (), choose: Choose | None = None, min_batches: int = 1
) -> Callable[[Score], Score]:
    """Register a score function.

    Args:
        name: name of the rule.
        needs: statistics that it reads (:mod:`taskedge.selection.statistics`).
        choose, min_batches: see :class:`Rule`.
    """

    def register(score: Score) -> Score:
        RULES.add(name, Rule(name, score, needs, choose, min_batches))
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


@rule("fisher_bottom", needs=(SQUARED_GRADIENTS,))
def fisher_bottom(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """The least sensitive weights first, ``-Σ_batches g²``: for merging, not for accuracy. Dead inputs come last.

    An input without any gradient would be the least sensitive of all, but its entries cannot train.
    Source: TaLoS (arXiv 2504.02620), which takes one example at a time, samples labels from the model and prunes in
    four rounds; here the batches are taken as they are, in one round.
    """
    squares = statistics.squared_gradient
    dead = (squares == 0).all(0)
    return squares.neg_().masked_fill_(dead, -torch.inf)


@rule("first_batch", needs=(FIRST_GRADIENTS,))
def first_batch(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Magnitude of the loss gradient of the first calibration batch: a control for more batches.

    Source: SIFT (arXiv 2312.11875); its budget is the allocation ``per_layer``.
    """
    return statistics.first_gradient.abs_()


@rule("pursuit", needs=(GRADIENTS, INPUTS))
def pursuit(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Magnitude of the loss gradient over that of the input, ``|Σ_batches g_ij|·rms(X)/rms(X_j)``; 0 for dead inputs.

    A gradient grows with its input. Divided by it, it says which input explains the error of the neuron best, as in a
    step of matching pursuit. rms(X), over all inputs of the linear, makes linears comparable: the score is the decrease
    of the loss in the first order under sign-like steps scaled by ``step="activation"``. Source: this project.
    """
    norm = statistics.input_norm
    inverse = torch.where(norm > 0, norm.square().mean().sqrt() / norm.clamp_min(1e-30), 0.0)
    return statistics.gradient.abs_().mul_(inverse)


@rule("pursuit_t", needs=(GRADIENTS, SQUARED_GRADIENTS), min_batches=2)
def pursuit_t(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Signal over noise of the gradients of the batches, ``|Σ g|/sqrt(Σ g²)``; 0 for entries without any.

    It is at most the square root of the number of batches, which entries reach whose gradients all agree: 16 or more
    small batches tell them apart. Source: this project.
    """
    norm = statistics.squared_gradient.sqrt_()
    # a square can round to 0 where its root does not; such a gradient counts as none
    return torch.where(norm > 0, statistics.gradient.abs_() / norm.clamp_min(1e-30), 0.0)


@rule("snip", needs=(GRADIENTS,))
def snip(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Loss gradient times weight, ``|Σ_batches g_ij · W_ij|``. Source: SNIP (arXiv 1810.02340)."""
    return statistics.gradient.mul_(weight.float()).abs_()


@rule("ratio", needs=(GRADIENTS,))
def ratio(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Loss gradient over weight, ``|Σ_batches g_ij| / (|W_ij| + 1e-8)``: small weights that should move.

    Source: GaLLoP (arXiv 2510.19778) and GEM (arXiv 2508.16191).
    """
    return statistics.gradient.abs_().div_(weight.float().abs() + 1e-8)


@rule("change", needs=(CHANGES,))
def change(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Change by a short dense run, ``|θ_tuned - θ_0|``; training on the support then starts at ``θ_0`` again.

    It costs the memory of full fine-tuning (:mod:`taskedge.training.dense_run`): the control that knows most.
    Source: LT-SFT (arXiv 2110.07560), LoTA (arXiv 2406.16797).
    """
    return statistics.change.abs_()


@rule("principal")
def principal(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Magnitude in the part of the weight with the 32 largest singular values; ``principal:R`` takes R of them.

    Source: LIFT (arXiv 2506.00772); it takes the top of the matrix, which is the allocation ``per_layer``.
    """
    return _principal_part(weight, PRINCIPAL_RANK).abs_()


def _principal_of_rank(name: str) -> Rule | None:
    """Return the rule ``principal:R``."""
    title, _, rank = name.partition(":")
    if title != "principal" or not rank.isascii() or not rank.isdecimal() or int(rank) < 1:
        return None

    def score(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
        return _principal_part(weight, int(rank)).abs_()

    score.__doc__ = principal.__doc__
    return Rule(name, score, ())


RULES.add_family("principal:R", _principal_of_rank)


def _principal_part(weight: Tensor, rank: int) -> Tensor:
    """Return ``U_r Σ_r V_rᵀ``, float32 [out, in]; the singular vectors of the smaller side come from ``WᵀW``."""
    if rank >= min(weight.shape):
        return weight.float().clone()
    matrix: Tensor = weight.double()
    if weight.shape[0] < weight.shape[1]:
        matrix = matrix.t()
    vectors = torch.linalg.eigh(matrix.t() @ matrix).eigenvectors[:, -rank:]
    part: Tensor = (matrix @ vectors) @ vectors.t()
    if weight.shape[0] < weight.shape[1]:
        part = part.t()
    return part.float().contiguous()


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
