"""Which input columns may carry entries: at most C of each input, chosen once for all linears that read it.

Training stores the columns of an input once for all its readers (query, key and value read the same tensor), so C
columns for each shared input keep C numbers a token, whereas C for each linear keep up to three times as many.

A column score is a function ``(readers, count, generator) -> scores``, registered with the statistics that it needs.
``readers`` are the linears that read the input, ``scores`` are [in] of any float dtype, and the ``count`` columns with
the largest scores are chosen. ``generator`` is for scores that draw random numbers.

Source: this project, except where a function names another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.backbone.layers import LayerAdapter, Linear
from taskedge.errors import BudgetError, InputError
from taskedge.registry import Registry
from taskedge.selection.allocations import Scores, best_of_all
from taskedge.selection.gradient_sums import GRADIENT_STATISTICS
from taskedge.selection.statistics import GRADIENTS, INPUT_PRODUCTS, INPUTS, LinearStatistics

COLUMNS = "columns"
"""The allocation that a support names whose entries are all in the best columns of each input."""
DEFAULT_COLUMN_SCORE = "entries"


@dataclass(frozen=True)
class Reader:
    """A linear that reads an input.

    Attributes:
        linear: the layer.
        statistics: its calibration statistics.
        entry_scores: returns its scores by the selection rule, float32 [out, in]; a new tensor at each call.
    """

    linear: Linear
    statistics: LinearStatistics
    entry_scores: Callable[[], Tensor]


Score = Callable[[Sequence[Reader], int, torch.Generator], Tensor]


@dataclass(frozen=True)
class ColumnScore:
    """A registered column score.

    Attributes:
        name: name in :data:`COLUMN_SCORES`.
        score: the function.
        needs: statistics that it reads (:mod:`taskedge.selection.statistics`).
    """

    name: str
    score: Score
    needs: tuple[str, ...]

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients of the loss."""
        return not GRADIENT_STATISTICS.isdisjoint(self.needs)


COLUMN_SCORES: Registry[ColumnScore] = Registry("column score", __name__)


def column_score(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[Score], Score]:
    """Register a score function.

    Args:
        name: name of the score.
        needs: statistics that it reads.
    """

    def register(score: Score) -> Score:
        COLUMN_SCORES.add(name, ColumnScore(name, score, needs))
        return score

    return register


def choose_columns(
    score: ColumnScore,
    linears: Mapping[str, Linear],
    statistics: Mapping[str, LinearStatistics],
    entry_scores: Scores,
    count: int,
    seed: int,
) -> dict[str, Tensor]:
    """Return the columns that each linear may use, int64 [min(count, in)], ascending; equal for readers of one input.

    Args:
        score: what ranks the columns.
        linears: the linears that take part.
        statistics: of these linears; ``shared_input`` says which of them read the same input.
        entry_scores: their scores by the selection rule.
        count: columns to choose for each input.
        seed: of scores that draw random numbers.

    Raises:
        BudgetError: ``count`` is below 1.
        InputError: a score is not a number.
    """
    refuse_no_columns(count)
    chosen: dict[str, Tensor] = {}
    for names, scores, _ in _scored_inputs(score, linears, statistics, entry_scores, count, seed):
        columns = best_of_all(scores, min(count, len(scores)))[1]
        chosen |= dict.fromkeys(names, columns)
    return chosen


def draw_columns(
    score: ColumnScore,
    linears: Mapping[str, Linear],
    statistics: Mapping[str, LinearStatistics],
    entry_scores: Scores,
    count: int,
    draws: int,
    seed: int,
) -> list[dict[str, Tensor]]:
    """Return columns drawn ``draws`` times, with probabilities proportional to their scores.

    A draw takes different columns, one after the other; draws are independent of each other.

    Args:
        score: what weights the columns; its scores must not be negative.
        linears, statistics, entry_scores, count: as for :func:`choose_columns`.
        draws: number of draws.
        seed: of the draws, and of scores that draw random numbers.

    Returns:
        For each draw the columns of each linear, as :func:`choose_columns` returns them.

    Raises:
        BudgetError: ``count`` is below 1.
        InputError: a score is negative or not a number.

    Source: TraDy (arXiv 2510.19675) for channels that are drawn anew each epoch, weighted by importance; this project
    for columns of shared inputs.
    """
    refuse_no_columns(count)
    found: list[dict[str, Tensor]] = [{} for _ in range(draws)]
    for names, scores, generator in _scored_inputs(score, linears, statistics, entry_scores, count, seed):
        if bool((scores < 0).any()):
            raise InputError(
                f"the column score {score.name!r} ranks columns and weights none, so none can be drawn by it: give "
                "another column score, or one draw"
            )
        for draw in found:
            # the largest log-score + Gumbel noise are a draw without replacement
            noise = -torch.rand(len(scores), generator=generator, dtype=torch.float64).log().neg().log()
            columns = best_of_all(scores.cpu().double().log() + noise, min(count, len(scores)))[1]
            draw |= dict.fromkeys(names, columns)
    return found


def _scored_inputs(
    score: ColumnScore,
    linears: Mapping[str, Linear],
    statistics: Mapping[str, LinearStatistics],
    entry_scores: Scores,
    count: int,
    seed: int,
) -> Iterator[tuple[tuple[str, ...], Tensor, torch.Generator]]:
    """Yield the readers of each input, its scores [in], and the generator that was given to the score."""
    generator = torch.Generator().manual_seed(seed + 2**32)  # not the numbers that the rule 'random' draws
    for names in readers_by_input(linears, statistics):
        readers = [
            Reader(linears[name], statistics[name], lambda name=name: entry_scores(name))  # type: ignore[misc]
            for name in names
        ]
        scores = score.score(readers, min(count, linears[names[0]].shape[1]), generator)
        if scores.isnan().any():
            raise InputError(
                f"the {score.name!r} scores of the input of {names[0]!r} are not numbers: does the model hold NaN "
                "weights?"
            )
        yield names, scores, generator


def in_columns(scores: Scores, columns: Mapping[str, Tensor]) -> Scores:
    """Return scores that are -inf outside the columns that each linear may use."""

    def masked(name: str) -> Tensor:
        score = scores(name)
        usable = torch.full_like(score, -torch.inf)
        usable[:, columns[name]] = score[:, columns[name]]
        return usable

    return masked


def refuse_no_columns(count: int) -> None:
    """Raise BudgetError for fewer than one column."""
    if count < 1:
        raise BudgetError(f"a limit of {count} columns leaves none to choose from: give 1 or more")


def readers_by_input(
    linears: Mapping[str, Linear], statistics: Mapping[str, LinearStatistics]
) -> Iterable[tuple[str, ...]]:
    """Return the names of the linears that read each input as the same matrix, in the order of ``linears``."""
    groups: dict[tuple[str, LayerAdapter], list[str]] = {}
    for name, linear in linears.items():
        groups.setdefault((statistics[name].shared_input, linear.adapter), []).append(name)
    return [tuple(names) for names in groups.values()]


@column_score("entries")
def entries(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Sum over the neurons of all readers of the rule's scores; with rule taskedge ``Σ_i |W_ij|·‖X_j‖₂``."""
    return _sum(reader.entry_scores().sum(0) for reader in readers)


@column_score("activation", needs=(INPUTS,))
def activation(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Input activation alone, ``‖X_j‖₂``."""
    return readers[0].statistics.input_norm


@column_score("weight")
def weight(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Norm of the weights alone, ``‖W_:j‖₂`` over the neurons of all readers."""
    return _sum(reader.linear.weight.float().square().sum(0) for reader in readers).sqrt()


@column_score("random")
def random(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Uniform random scores: the control that every other score must beat."""
    return torch.rand(readers[0].linear.shape[1], generator=generator)


@column_score("gradient", needs=(GRADIENTS,))
def gradient(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Norm of the loss gradient, ``‖∂L/∂W_:j‖₂`` over the neurons of all readers, L summed over the batches."""
    return _sum(reader.statistics.gradient.square_().sum(0) for reader in readers).sqrt()


@column_score("pursuit", needs=(GRADIENTS, INPUTS))
def pursuit(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Norm of the loss gradient over that of the input, ``‖∂L/∂W_:j‖₂ / ‖X_j‖₂``; 0 for inputs that are always 0.

    A gradient grows with its input. Divided by it, it says how well the input explains the error of the neurons.
    """
    norm = readers[0].statistics.input_norm
    return torch.where(norm > 0, gradient(readers, count, generator) / norm.clamp_min(1e-30), 0.0)


@column_score("principal")
def principal(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Norm of the column in the part of the weights with the ``count`` largest singular values.

    The weights of all readers are one matrix, and its right singular vectors come from ``WᵀW``. Source: LIFT (arXiv
    2506.00772) for scores by the principal part; this project for columns, and for the rank.
    """
    products = _sum(_gram(reader.linear.weight) for reader in readers)
    values, vectors = torch.linalg.eigh(products)
    energy: Tensor = vectors[:, -count:].square() @ values[-count:].clamp_min(0)
    return energy.sqrt()


@column_score("greedy", needs=(INPUTS, INPUT_PRODUCTS))
def greedy(readers: Sequence[Reader], count: int, generator: torch.Generator) -> Tensor:
    """Sum over neurons of ``|W_ij|`` times the norm of what X_j adds to the span of the columns chosen before it.

    The columns are chosen one by one, as in a Cholesky decomposition of ``XᵀX`` with pivots.
    """
    products = readers[0].statistics.input_products
    assert products is not None
    weights = _sum(reader.linear.weight.float().abs().sum(0) for reader in readers).double()
    left = products.diagonal().clone()  # squared norm of what is not spanned yet
    spent = 1e-10 * left  # a rounded zero
    factor = products.new_zeros(len(left), count)
    ranks = torch.full_like(left, -1.0)
    for step in range(count):
        open_columns = ranks < 0
        gain = torch.where(open_columns, weights * left.clamp_min(0).sqrt(), -1.0)
        best = int(gain.argmax())
        ranks[best] = count - step
        if left[best] <= spent[best]:  # all is spanned: those that follow add nothing
            continue
        column = products[:, best] - factor[:, :step] @ factor[best, :step]
        factor[:, step] = column / left[best].sqrt()
        left -= factor[:, step].square()
    return ranks


def _gram(weight: Tensor) -> Tensor:
    """Return float64 [in, in], ``WᵀW``."""
    weight = weight.double()
    return weight.t() @ weight


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors one at a time."""
    total: Tensor | None = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None
    return total
