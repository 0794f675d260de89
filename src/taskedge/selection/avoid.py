"""Entries that a selection leaves out, such as those of other tasks: merged deltas on disjoint supports do not collide.

Source: disjoint supports as in SHiRA (arXiv 2406.13175); that the next best entries take the place is this project's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from taskedge.errors import BudgetError, InputError
from taskedge.selection.allocations import Scores


class Entries(Protocol):
    """The entries of a linear, of a support or of a delta."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        ...

    @property
    def rows(self) -> Tensor:
        """Row of each entry."""
        ...

    @property
    def columns(self) -> Tensor:
        """Column of each entry."""
        ...


def avoided_entries(
    model: nn.Module, shapes: Mapping[str, tuple[int, int]], others: Sequence[Mapping[str, Entries]]
) -> dict[str, Tensor]:
    """Return the entries of others as flat indices by linear, sorted and each once.

    Args:
        model: whose weights are selected.
        shapes: (out, in) of the linears to choose from; entries of other linears need no avoiding.
        others: entries by linear, such as the ``linears`` of deltas and supports.

    Raises:
        InputError: a linear is not in the model, or has another shape there.
    """
    modules = {name for name, _ in model.named_modules()}
    for name, entries in (item for linears in others for item in linears.items()):
        if name not in modules:
            raise InputError(
                f"the entries to avoid lie in {name!r}, which the model does not have: name files of the same base"
            )
        if name in shapes and tuple(entries.shape) != tuple(shapes[name]):
            raise InputError(
                f"the entries to avoid lie in {name!r} of shape {list(entries.shape)}, which is {list(shapes[name])} "
                "here: name files of the same base"
            )
    return {name: flat for name, flat in flat_entries(others).items() if name in shapes}


def flat_entries(parts: Sequence[Mapping[str, Entries]]) -> dict[str, Tensor]:
    """Return the entries of any part as ``row * in + column`` by linear, ascending and each once."""
    found: dict[str, list[Tensor]] = {}
    for linears in parts:
        for name, entries in linears.items():
            found.setdefault(name, []).append(entries.rows * entries.shape[1] + entries.columns)
    return {name: torch.unique(torch.cat(flat)) for name, flat in found.items()}


def without(scores: Scores, avoided: Mapping[str, Tensor]) -> Scores:
    """Return scores that are -inf at avoided entries."""

    def masked(name: str) -> Tensor:
        score = scores(name)
        if name in avoided:
            score = score.clone()
            score.view(-1)[avoided[name].to(score.device)] = -torch.inf
        return score

    return masked


def refuse_avoided(chosen: Mapping[str, Tensor], avoided: Mapping[str, Tensor], wanted: Iterable[int]) -> None:
    """Raise BudgetError if a budget reaches entries that must be avoided, since nothing else was left.

    Args:
        chosen: flat indices by linear.
        avoided: the same of entries to avoid.
        wanted: number of chosen entries, for the message.
    """
    taken = {name: int(torch.isin(flat, avoided[name]).sum()) for name, flat in chosen.items() if name in avoided}
    if total := sum(taken.values()):
        name = next(name for name, count in taken.items() if count)
        raise BudgetError(
            f"{total:,} of the {sum(wanted):,} entries of the budget are among those to avoid, the first in {name!r}: "
            "its rows have too few others; lower the budget, or avoid fewer files"
        )
