"""How much the supports of two deltas overlap, and whether they pull shared entries the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from taskedge.delta.combination.task_vectors import TaskVector, named_vectors


@dataclass(frozen=True)
class Overlap:
    """Entries that two task vectors share.

    Attributes:
        first, second: names of the deltas.
        shared: number of entries that both change.
        same_sign: number of these that both change in the same direction.
        share: ``shared`` over the entries of the smaller delta.
        by_chance: the share that random supports of these sizes would have, linear by linear.
    """

    first: str
    second: str
    shared: int
    same_sign: int
    share: float
    by_chance: float

    def __str__(self) -> str:
        signs = f", {self.same_sign / self.shared:.1%} of them with the same sign" if self.shared else ""
        return (
            f"{self.first} and {self.second}: {self.shared:,} shared entries, {self.share:.2%} of the smaller delta"
            f"{signs} (random supports: {self.by_chance:.2%})"
        )


def overlaps(names: Sequence[str], vectors: Sequence[TaskVector]) -> list[Overlap]:
    """Return the overlap of each pair of task vectors, in order."""
    named = list(zip(names, vectors, strict=True))
    return [_overlap(*one, *other) for one, other in combinations(named, 2)]


def _overlap(first: str, one: TaskVector, second: str, other: TaskVector) -> Overlap:
    shared = same_sign = 0
    expected = 0.0
    others = named_vectors(other)
    for name, mine in named_vectors(one).items():
        theirs = others.get(name)
        if theirs is None or not len(mine) or not len(theirs):
            continue
        at = torch.searchsorted(theirs.flat, mine.flat).clamp_max(len(theirs) - 1)
        both = theirs.flat[at] == mine.flat
        shared += int(both.sum())
        same_sign += int((mine.differences[both].sign() == theirs.differences[at[both]].sign()).sum())
        expected += len(mine) * len(theirs) / torch.Size(mine.shape).numel()
    smaller = max(1, min(len(one), len(other)))
    return Overlap(first, second, shared, same_sign, shared / smaller, expected / smaller)
