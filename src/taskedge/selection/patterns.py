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
    """N of every M inputs of a row; a last, shorter group of r inputs has min(N, r) entries."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def per_row(self, width: int) -> int:
        """Return the number of entries in a row of ``width`` inputs."""
        groups, rest = divmod(width, self.m)
        return groups * self.n + min(self.n, rest)

    def matches(self, entries: Entries) -> bool:
        """Return whether every group of every row has exactly its number of entries."""
        rows, width = entries.shape
        if len(entries.rows) != rows * self.per_row(width):
            return False
        groups = -(-width // self.m)
        counts = torch.bincount(entries.rows * groups + entries.columns // self.m, minlength=rows * groups)
        expected = torch.full((groups,), self.n)
        expected[-1] = min(self.n, width - (groups - 1) * self.m)
        return torch.equal(counts.view(rows, groups), expected.expand(rows, groups))


class Entries(Protocol):
    """Entries of a weight: a linear of a support, or of a delta."""

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
    """Return the pattern that a text such as ``"2:4"`` names; None for a text without a colon.

    Raises:
        BudgetError: the text is not N:M with 1 ≤ N < M.
    """
    if ":" not in name:
        return None
    parts = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", name, re.ASCII)
    if parts is None:
        raise BudgetError(f"{name!r} is not an N:M pattern: write two whole numbers, such as '2:4'")
    n, m = int(parts[1]), int(parts[2])
    if not 1 <= n < m:
        raise BudgetError(
            f"the pattern {name!r} keeps {n} of every {m} inputs: N must be at least 1 and below M, such as '2:4'"
        )
    return Pattern(n, m)


def find_pattern(linears: Iterable[Entries]) -> Pattern | None:
    """Return the pattern of the smallest M that all ``linears`` match, or None.

    M is searched up to the widest row, and up to 65,536, because a file may claim any width.
    """
    all_entries = list(linears)
    if not all_entries:
        return None
    widest = max(all_entries, key=lambda entries: entries.shape[1])
    for m in range(2, min(widest.shape[1], 2**16) + 1):
        n = _n_for(m, widest)
        if n is not None and all(Pattern(n, m).matches(entries) for entries in all_entries):
            return Pattern(n, m)
    return None


def _n_for(m: int, entries: Entries) -> int | None:
    """Return the N for which N:M, M at most the width, has as many entries as given; None if there is none."""
    rows, width = entries.shape
    per_row, remainder = divmod(len(entries.rows), rows)
    if remainder:
        return None
    groups, rest = divmod(width, m)
    n_if_at_most_rest = per_row // (groups + 1)
    n_if_above_rest = (per_row - rest) // groups
    for n in (n_if_at_most_rest, n_if_above_rest):
        if 1 <= n < m and Pattern(n, m).per_row(width) == per_row:
            return n
    return None
