"""The number of tokens at which the texts of a run are cut."""

from __future__ import annotations

from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.training.tasks import Log, Task


def token_limit(task: Task, base: Base, requested: int | None, log: Log) -> int:
    """Return the tokens at which texts are cut; 0 for images.

    This is the requested number or else the task's, but not more than the base has positions for.

    Raises:
        InputError: the tokens that the tokenizer puts around a text leave no token of it.
    """
    if task.max_length is None:
        return 0
    limit = requested or task.max_length
    if base.max_positions is not None and limit > base.max_positions:
        log(f"texts are cut at {base.max_positions} tokens: the model has no more positions")
        limit = base.max_positions
    num_special = len(base.tokenizer([""])["input_ids"][0])
    if limit <= num_special and "label" in task.column_sets[0]:
        raise InputError(
            f"--max-length {limit} leaves no token of a text: the tokenizer adds {num_special} tokens to each, so give "
            f"at least {num_special + 1}"
        )
    return limit
