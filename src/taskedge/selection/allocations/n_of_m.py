"""The allocations ``N:M``, such as ``2:4``: the name is the pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskedge.selection.allocations import ALLOCATIONS, Scores, Shapes, refuse_nan
from taskedge.selection.patterns import Pattern, read_pattern


@dataclass(frozen=True)
class NOfM:
    """In each row, of every group of M consecutive inputs the N best; of a rest group of r inputs the min(N, r) best.

    The pattern is the budget. Source: TaskEdge (arXiv 2504.03718), for sparse tensor cores; the rest group is ours.
    """

    pattern: Pattern

    def entries(self, shapes: Shapes) -> int:
        """How many entries the pattern takes."""
        return sum(rows * self.pattern.per_row(columns) for rows, columns in shapes.values())

    def __call__(self, shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
        return {name: self._of(name, scores(name)) for name in shapes}

    def _of(self, name: str, score: Tensor) -> Tensor:
        """Flat indices, ascending, of one linear."""
        n, m = self.pattern.n, self.pattern.m
        rows, width = score.shape
        whole = width // m * m
        parts = []
        if whole:
            top, place = score[:, :whole].reshape(rows, -1, m).topk(n, dim=2)  # (rows, groups, n)
            refuse_nan(name, top)
            parts.append((place + torch.arange(0, whole, m, device=score.device)[:, None]).flatten(1))
        if width > whole:
            top, place = score[:, whole:].topk(min(n, width - whole), dim=1)
            refuse_nan(name, top)
            parts.append(place + whole)
        columns = torch.cat(parts, dim=1).sort(dim=1).values
        return (columns + torch.arange(rows, device=score.device)[:, None] * width).flatten().cpu()


def _member(name: str) -> NOfM | None:
    pattern = read_pattern(name)
    return None if pattern is None else NOfM(pattern)


ALLOCATIONS.add_family("N:M", _member)
