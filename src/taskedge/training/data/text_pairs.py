"""Two texts of a row as a pair: with the tokenizer's own separators, as its model was pretrained.

Without separators of its own, a tokenizer would put the second text right behind the first. The two are one text then,
with a line break between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.training.data.table import Table

_Paired = TypeVar("_Paired", bound=Any)


def separates_pairs(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts more control tokens into a pair than around one text."""
    count = getattr(tokenizer, "num_special_tokens_to_add", None)
    return count is not None and bool(count(pair=True) > count(pair=False))


def pair_of(table: Table) -> tuple[Sequence[str], Sequence[str]]:
    """Return the first and the second text of each row.

    Raises:
        InputError: the table was not read from two text columns.
    """
    if table.firsts is None or table.pairs is None:
        raise InputError(f"{table.path}: the delta was trained on pairs of texts: name both columns with --text")
    return table.firsts, table.pairs


def bound_pair(task: _Paired, base: Base, log: Callable[[str], None]) -> _Paired:
    """Return a task for a base: with pairs only where the base's tokenizer separates them. Logs how they go in."""
    if not task.pair:
        return task
    tokenizer: Any = base.tokenizer
    if separates_pairs(tokenizer):
        log(f"the two texts go in as a pair, such as {tokenizer.decode(tokenizer('A', 'B')['input_ids'])!r}")
        return task
    log("the two texts go in as one, joined by a line break: the base's tokenizer has no separator for pairs")
    return replace(task, pair=False)
