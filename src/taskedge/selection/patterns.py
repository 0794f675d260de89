"""N:M patterns: in every row, each group of M consecutive inputs holds exactly N entries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taskedge.errors import BudgetError


@dataclass(frozen=True)
class Pattern:
    """N of every M. Where a row's width is no multiple of M, its last, shorter group of r inputs holds min(N, r)."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def per_row(self, width: int) -> int:
        """Entries in a row of that many inputs."""
        groups, rest = divmod(width, self.m)
        return groups * self.n + min(self.n, rest)

    def holds(self, entries: Entries) -> bool:
        """Whether every group of every row has exactly its number of entries."""
        rows, width = entries.shape
        if len(entries.rows) != rows * self.per_row(width):
            return False
        groups = -(-width // self.m)
        found = torch.bincount(entries.rows * groups + entries.columns // self.m, minlength=rows * groups)
        expected = torch.full((groups,), self.n)
        expected[-1] = min(self.n, width - (groups - 1) * self.m)
        return torch.equal(found.view(rows, groups), expected.expand(rows, groups))


class Entries(Protocol):
    """Some entries of a weight: a linear of a support, or of a delta."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def rows(self) -> Tensor:
        """int64 [n]."""

    @property
    def columns(self) -> Tensor:
        """int64 [n]."""


def read_pattern(name: str) -> Pattern | None:
    """``"2:4"`` as a pattern; None for a name without a colon.

    Raises:
        BudgetError: what stands around the colon is no N:M with 1 ≤ N < M.
    """
    if ":" not in name:
        return None
    parts = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", name, re.ASCII)
    if parts is None:
        raise BudgetError(f"{name!r} is no N:M pattern: write two whole numbers, such as '2:4'")
    n, m = int(parts[1]), int(parts[2])
    if not 1 <= n < m:
        raise BudgetError(
            f"the pattern {name!r} keeps {n} of every {m} inputs: N must be at least 1 and below M, such as '2:4'"
        )
    return Pattern(n, m)


def find_pattern(linears: Iterable[Entries]) -> Pattern | None:
    """The pattern of the smallest M that holds in all of ``linears``, or None.

    M is looked for up to the widest row, and up to 65,536: a file may claim any width.
    """
    found = list(linears)
    if not found:
        return None
    widest = max(found, key=lambda entries: entries.shape[1])
    for m in range(2, min(widest.shape[1], 2**16) + 1):
        n = _n_for(m, widest)
        if n is not None and all(Pattern(n, m).holds(entries) for entries in found):
            return Pattern(n, m)
    return None


def _n_for(m: int, entries: Entries) -> int | None:
    """The N with which a pattern of that M, at most the width, gives as many entries as there are; None for none."""
    rows, width = entries.shape
    each, odd = divmod(len(entries.rows), rows)
    groups, rest = divmod(width, m)
    n_below_rest, n_above_rest = each // (groups + 1), (each - rest) // groups
    fitting = [n for n in (n_below_rest, n_above_rest) if 1 <= n < m and Pattern(n, m).per_row(width) == each]
    return fitting[0] if fitting and not odd else None
