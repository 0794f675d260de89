"""Failures of a base on a user's rows, as messages that name the rows.

A model of transformers raises whatever its code meets: an index without an embedding, a field of its config that is
missing, end tokens that it counts. Inside :func:`guarded` such an exception becomes a :class:`RowError` with the row
numbers, the cause, and the field of the config where it can be told. Exceptions of this package pass unchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import evaluation_mode, run_batch
from taskedge.errors import InputError, TaskEdgeError

_Row = dict[str, Any]
_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
_MAX_NAMED = 5
_POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length")


class RowError(InputError):
    """A base that cannot compute some rows.

    Attributes:
        numbers: of the rows, from 1.
        reason: the message without the numbers.
    """

    def __init__(self, numbers: Sequence[int], reason: str) -> None:
        self.numbers, self.reason = tuple(numbers), reason
        super().__init__(f"{rows_text(numbers)}: {reason}")


def rows_text(numbers: Sequence[int]) -> str:
    """Return ``"row 3"`` or ``"rows 3, 8 and 2 more"``."""
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    shown = ", ".join(map(str, numbers[:_MAX_NAMED]))
    more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
    return f"rows {shown}{more}"


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Name the file of the rows in a :class:`RowError`."""
    try:
        yield
    except RowError as error:
        raise InputError(f"{path}, {error}") from error.__cause__


@contextmanager
def guarded(
    model: nn.Module,
    rows: Sequence[_Row],
    indices: Sequence[int] | Callable[[], Sequence[int]],
    collate: Callable[[list[_Row]], Any],
) -> Iterator[None]:
    """Turn an exception of the model inside the block into a :class:`RowError`.

    Args:
        model: runs on rows of the batch inside the block.
        rows: all rows.
        indices: of the rows in the batch, or a function that returns them. Without rows the exception passes
            unchanged: it is of other code, such as a user's selection rule.
        collate: makes a batch of rows. If the batch fails, it makes one of each row, to find out which fail alone.

    Raises:
        RowError: the model failed.
    """
    try:
        yield
    except TaskEdgeError:
        raise
    except Exception as error:
        if not is_model_error(error):
            raise
        batch = list(indices() if callable(indices) else indices)
        if not batch:
            raise
        failing, cause = _failing_alone(model, rows, batch, collate, error)
        numbers = getattr(rows, "numbers", None) or range(1, len(rows) + 1)  # a part of a table numbers its rows
        raise RowError(
            [numbers[index] for index in failing], _reason(model, cause, [rows[i] for i in failing])
        ) from cause


@contextmanager
def explained(check: Callable[[], None]) -> Iterator[None]:
    """Run ``check``, which raises an error that names the rows, if a model fails inside the block."""
    try:
        yield
    except TaskEdgeError:
        raise
    except Exception as error:
        if is_model_error(error):
            check()
        raise


def check_forward(
    model: nn.Module, rows: Sequence[_Row], collate: Callable[[list[_Row]], Any], rows_per_pass: int
) -> None:
    """Run the model once on a batch of the longest rows and once on a batch of the first ones, without gradients.

    Raises:
        RowError: the model failed on some of them.
    """
    by_length = sorted(range(len(rows)), key=lambda index: -len(rows[index].get("input_ids", ())))
    longest, first = by_length[:rows_per_pass], list(range(min(rows_per_pass, len(rows))))
    with evaluation_mode(model), torch.no_grad():
        for batch in (longest, first) if set(longest) != set(first) else (first,):
            with guarded(model, rows, batch, collate):
                output = run_batch(model, collate([rows[index] for index in batch]))
            outputs = getattr(output, "logits", None)
            if outputs is None:  # a loss from labeled positions: not a number where any output is not
                outputs = getattr(output, "loss", None)
            if isinstance(outputs, Tensor) and bool(outputs.isnan().any()):
                raise RowError(
                    sorted(index + 1 for index in batch),
                    "the base's outputs are not numbers: a weight in its files is not finite, or they overflow in its "
                    "dtype: download the base again, or load it with --dtype fp32",
                )


def is_model_error(error: BaseException) -> bool:
    """Return whether an exception was raised outside this package, such as in the code of a model."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and not trace.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _failing_alone(
    model: nn.Module,
    rows: Sequence[_Row],
    batch: Sequence[int],
    collate: Callable[[list[_Row]], Any],
    error: Exception,
) -> tuple[list[int], Exception]:
    """Return the rows that fail alone, with the exception of the first; else those with odd end tokens, else all."""
    failing: list[int] = []
    with evaluation_mode(model), torch.no_grad():
        for index in batch:
            try:
                run_batch(model, collate([rows[index]]))
            except Exception as alone:
                if not failing:
                    error = alone
                failing.append(index)
    if failing:
        return sorted(failing), error
    end = getattr(getattr(model, "config", None), "eos_token_id", None)
    counts = [list(rows[index].get("input_ids", ())).count(end) for index in batch]
    usual = max(set(counts), key=counts.count) if counts else 0
    odd = [index for index, count in zip(batch, counts, strict=True) if count != usual]
    return sorted(odd if odd and "eos" in str(error) else batch), error


def _reason(model: nn.Module, error: Exception, rows: Sequence[_Row]) -> str:
    """Return what failed and what to do about it."""
    cause = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    config = getattr(model, "config", None)
    return f"the base cannot compute it ({cause}): {_remedy(config, model, error, rows)}"


def _remedy(config: Any, model: nn.Module, error: Exception, rows: Sequence[_Row]) -> str:
    if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
        return "there is too little memory: lower --batch-size or --max-length"
    ids = [index for row in rows for index in row.get("input_ids", ())]
    embeddings = _num_embeddings(model)
    if embeddings is not None and ids and max(ids) >= embeddings:
        return (
            f"token {max(ids)} has no embedding, since the base has {embeddings:,} (vocab_size in its config.json): "
            "use the tokenizer that the base was trained with"
        )
    for name, value in _control_ids(config):
        if embeddings is not None and isinstance(error, IndexError) and value >= embeddings:
            return f"{name} in the base's config.json is {value}, and the base has embeddings for {embeddings:,} tokens"
    longest = max((len(row.get("input_ids", ())) for row in rows), default=0)
    for name in _POSITIONS:
        positions = getattr(config, name, None)
        if isinstance(positions, int) and longest > positions > 0:
            return f"it has {longest} tokens, and {name} in the base's config.json is {positions}: lower --max-length"
    if "eos" in str(error):
        return (
            "a base that reads the end token needs the same number in every row: check that its tokenizer puts one "
            "after each text and that eos_token_id in its config.json is that token, and remove end tokens from texts"
        )
    field = _named_field(config, str(error))
    if field is not None:
        return f"set {field} in the base's config.json (it is {getattr(config, field)!r})"
    return "correct or remove it if others run; if all rows fail, correct the base's config.json or name another base"


def _control_ids(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the fields of a config that hold ids of tokens."""
    for name, value in vars(config).items() if config is not None else ():
        if name.endswith("_token_id") and isinstance(value, int):
            yield name, value


def _named_field(config: Any, text: str) -> str | None:
    """Return the field of the config with the longest name among those that a message names."""
    fields = vars(config) if config is not None else {}
    named = [name for name in fields if len(name) > 4 and re.search(rf"\b{re.escape(name)}\b", text)]
    return max(named, key=len, default=None)


def _num_embeddings(model: Any) -> int | None:
    try:
        weight = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return None
    return len(weight) if isinstance(weight, Tensor) else None
