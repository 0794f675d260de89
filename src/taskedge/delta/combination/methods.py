"""Methods of merging task vectors: which entries of each are kept, and how kept entries add up.

Densities are shares of a delta's support, never of the tensor: a share of the tensor would keep zeros. Every function
works on the union of the supports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.delta.combination.task_vectors import SparseVector, TaskVector, named_vectors
from taskedge.errors import InputError

Masks = dict[str, Tensor]
"""Bool [n] for each sparse vector of a task: the entries that are kept."""

BREADCRUMBS_TOP = 0.01
"""Share of the largest changes that breadcrumbs drops (mergekit's default)."""


@dataclass(frozen=True)
class Choice:
    """Inputs of a rule for keeping entries, beside the vector.

    Attributes:
        density: share of the support that is kept, above 0 and at most 1.
        generator: draws random choices.
        importance: importance of each entry, by name; None unless the method needs it.
    """

    density: float
    generator: torch.Generator
    importance: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Method:
    """One method of merging.

    Attributes:
        keep: returns the entries that are kept of one task.
        density: default density.
        rescale: whether kept differences are divided by the density, so that their mean is that of all.
        merge: adds up float64 [tasks, n] differences, 0 where a task has none, with weights float64 [tasks].
        needs_importance: whether ``Choice.importance`` is used.
    """

    keep: Callable[[TaskVector, Choice], Masks]
    merge: Callable[[Tensor, Tensor], Tensor]
    density: float = 1.0
    rescale: bool = False
    needs_importance: bool = False


def weighted_sum(differences: Tensor, weights: Tensor) -> Tensor:
    """Return ``Σ w_t τ_t``. Source: Task Arithmetic (arXiv 2212.04089)."""
    return (weights[:, None] * differences).sum(0)


def elected_mean(differences: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of the weighted differences that have the elected sign, that of the unweighted sum.

    A sum of 0 elects +. The mean is over the number of tasks that agree. Source: TIES (arXiv 2306.01708), as in PEFT.
    """
    elected = torch.where(differences.sum(0) >= 0, 1.0, -1.0)
    agree = differences.sign() == elected
    return (weights[:, None] * differences * agree).sum(0) / agree.sum(0).clamp_min(1)


def merged(
    vectors: Sequence[SparseVector], masks: Sequence[Tensor], weights: Tensor, scales: Sequence[float], method: Method
) -> SparseVector:
    """Return the merged change of one tensor, on the union of the supports.

    Args:
        vectors: the change by each task that has one.
        masks: bool [n] of each: the kept entries.
        weights: float64 [tasks].
        scales: factor of each task's kept differences.
        method: how they add up.
    """
    union = torch.cat([vector.flat for vector in vectors]).unique()  # type: ignore[no-untyped-call]
    differences = torch.zeros(len(vectors), len(union), dtype=torch.float64)
    for row, vector, kept, scale in zip(differences, vectors, masks, scales, strict=True):
        row[torch.searchsorted(union, vector.flat[kept])] = vector.differences[kept] * scale
    return SparseVector(vectors[0].shape, union, method.merge(differences, weights))


def keep_largest(vector: TaskVector, choice: Choice) -> Masks:
    """Keep the largest changes of each tensor."""
    return {
        name: _top(part.differences.abs(), _count(part, choice.density)) for name, part in named_vectors(vector).items()
    }


def keep_random(vector: TaskVector, choice: Choice) -> Masks:
    """Keep each entry with the probability ``density``. Source: DARE (arXiv 2311.03099)."""
    return {
        name: torch.rand(len(part), generator=choice.generator, dtype=torch.float64) < choice.density
        for name, part in named_vectors(vector).items()
    }


def keep_middle(vector: TaskVector, choice: Choice) -> Masks:
    """Keep neither the largest 1 % of the changes of each tensor nor its smallest ones.

    Source: Model Breadcrumbs (arXiv 2312.06795).
    """
    masks = {}
    for name, part in named_vectors(vector).items():
        kept = _count(part, choice.density)
        num_largest = min(int(BREADCRUMBS_TOP * len(part)), len(part) - kept)
        sizes = part.differences.abs()
        masks[name] = _top(sizes, num_largest + kept) & ~_top(sizes, num_largest)
    return masks


def keep_important(vector: TaskVector, choice: Choice) -> Masks:
    """Keep the most important entries of the delta, in whichever tensors they are.

    Source: Selective Task Arithmetic (arXiv 2411.16139) for the importance; this project for the density.
    """
    assert choice.importance is not None
    parts = named_vectors(vector)
    for name, part in parts.items():
        if name not in choice.importance or choice.importance[name].shape != (len(part),):
            raise InputError(
                f"no importance of the {len(part):,} entries of {name!r} is given: compute it of this delta"
            )
    scores = torch.cat([torch.empty(0, dtype=torch.float64), *(choice.importance[name].double() for name in parts)])
    kept = _top(scores, round(choice.density * len(scores)))
    sizes = [len(part) for part in parts.values()]
    return dict(zip(parts, kept.split(sizes), strict=True))  # type: ignore[no-untyped-call]


def _count(part: SparseVector, density: float) -> int:
    return int(density * len(part))


def _top(scores: Tensor, count: int) -> Tensor:
    """Return bool [n]: the ``count`` largest; the first of equal ones."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    return kept


METHODS: dict[str, Method] = {
    "arithmetic": Method(keep_largest, weighted_sum),
    "selective": Method(keep_important, weighted_sum, density=0.5, needs_importance=True),
    "ties": Method(keep_largest, elected_mean, density=0.5),
    "dare": Method(keep_random, weighted_sum, density=0.5, rescale=True),
    "breadcrumbs": Method(keep_middle, weighted_sum, density=0.9),
}
"""Methods by name."""
