"""Allocations: how a number of entries is spread over the linears and their neurons, given scores.

An allocation is a function ``(shapes, scores, entries) -> {name: flat indices}``. It asks for the scores of one
linear at a time and keeps only what can still be chosen, so that no second copy of the model is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from taskedge.errors import BudgetError, InputError
from taskedge.registry import Registry

Shapes = Mapping[str, tuple[int, int]]
"""(rows, columns that may be chosen in a row) by linear."""
Scores = Callable[[str], Tensor]
"""Scores float32 [out, in] of one linear, the same whenever asked; columns that may not be chosen are -inf."""
Allocation = Callable[[Shapes, Scores, int], dict[str, Tensor]]
"""Returns int64 [n] of ``row * in + column``, ascending, by linear; a linear without entries may be absent."""

DEFAULT = "per_neuron"

ALLOCATIONS: Registry[Allocation] = Registry("allocation", __name__)


def allocate(allocation: str, shapes: Shapes, scores: Scores, entries: int) -> dict[str, Tensor]:
    """Chooses exactly ``entries`` entries by the allocation of that name.

    Raises:
        BudgetError: ``entries`` is below 1 or above what the linears can carry.
        InputError: a score that is not a number.
    """
    capacity = sum(rows * columns for rows, columns in shapes.values())
    if entries < 1:
        raise BudgetError(f"a budget of {entries} entries trains nothing: give a larger share, or per_neuron=1")
    if entries > capacity:
        raise BudgetError(
            f"a budget of {entries:,} entries is more than the {capacity:,} that {len(shapes)} linears can carry: "
            "lower the budget, or let more linears or columns take part"
        )
    return ALLOCATIONS[allocation](shapes, scores, entries)


def best(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of ``values`` [n], best first, ties to the lower index."""
    return torch.sort(values, descending=True, stable=True).indices[:count]


def refuse_nan(name: str, values: Tensor) -> None:
    """NaN sorts above every number, so looking at the chosen scores finds any there is."""
    if values.isnan().any():
        raise InputError(f"the scores of linear {name!r} are not numbers: does the model hold NaN weights?")
