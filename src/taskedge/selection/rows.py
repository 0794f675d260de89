"""Which neurons may carry entries: at most R of each linear, chosen after the columns.

With C columns of an input and R rows of a weight, the gradient of the entries needs C numbers of each token's input and
R of its output gradient. Rows are not shared as columns are: linears that read one input have outputs of their own.

Source: this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskedge.errors import BudgetError
from taskedge.selection.allocations import Scores, best_of_all, refuse_nan, row_sums


def choose_rows(names: Sequence[str], scores: Scores, count: int) -> dict[str, Tensor]:
    """Return the rows that each linear may use, int64 [min(count, out)], ascending, on the CPU.

    They have the largest sums of scores over the columns that may be chosen; ties go to the lower row. For given
    columns no other rows hold entries with a larger sum.

    Args:
        names: the linears.
        scores: their scores; columns that may not be chosen are -inf.
        count: rows to choose in each linear.

    Raises:
        BudgetError: ``count`` is below 1.
        InputError: a score is not a number.
    """
    refuse_no_rows(count)
    chosen = {}
    for name in names:
        sums = row_sums(scores(name)).cpu()
        refuse_nan(name, sums)
        chosen[name] = best_of_all(sums, min(count, len(sums)))[1]
    return chosen


def refuse_no_rows(count: int) -> None:
    """Raise BudgetError for fewer than one row."""
    if count < 1:
        raise BudgetError(f"a limit of {count} rows leaves none to choose from: give 1 or more")


def usable_rows(rows: int, max_rows: int | None) -> int:
    """Return how many of ``rows`` may be used.

    Raises:
        BudgetError: none may.
    """
    if max_rows is None:
        return rows
    refuse_no_rows(max_rows)
    return min(rows, max_rows)


def in_rows(scores: Scores, rows: Mapping[str, Tensor]) -> Scores:
    """Return the scores of the chosen rows only, [rows, in]."""

    def of_rows(name: str) -> Tensor:
        score = scores(name)
        return score[rows[name].to(score.device)]

    return of_rows


def in_whole_weights(
    entries: Mapping[str, Tensor], rows: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return entries of the chosen rows as entries of the whole weights, int64 [n], ascending.

    Args:
        entries: ``place among the chosen rows * in + column`` by linear, ascending.
        rows: the chosen rows.
        widths: ``in`` of each linear.
    """
    return {
        name: rows[name][torch.div(flat, widths[name], rounding_mode="floor")] * widths[name] + flat % widths[name]
        for name, flat in entries.items()
    }
