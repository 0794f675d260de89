r"""Tokens with tags: from columns with lists, or from CoNLL files (a token and its tag on a line, blank lines between).

    table = read_tagged("ner.jsonl", "tokens", "tags")
    table.texts[0], table.labels[0]     # "Ada\nLovelace\nwrote", "B-PER\nI-PER\nO"

A :class:`~taskedge.training.data.table.Table` holds texts, so the tokens of a row are joined by line breaks, which no
token contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.file_text import row_error
from taskedge.training.data.table import Table
from taskedge.training.data.table_readers import check_column_names, read_columns

SEPARATOR = "\n"
"""Between the tokens of a row, and between its tags."""


def split_row(joined: str) -> list[str]:
    """Return the tokens, or tags, of a row."""
    return joined.split(SEPARATOR)


def read_tagged(path: Path, tokens: str, tags: str | None = None) -> Table:
    """Read the tokens of every row, and their tags if ``tags`` names a column.

    A cell is a list of texts, or a text whose parts are separated by blanks.

    Raises:
        InputError: see :func:`taskedge.training.data.table.read_table`; a row without tokens, or with another number of
            tags than of tokens.
    """
    names = [tokens] if tags is None else [tokens, tags]
    read = read_columns(path, lambda available: check_column_names(path, names, available))
    lists = [[_parts(path, row, name, cell) for row, cell in enumerate(column, start=1)]
             for name, column in zip(names, read.values, strict=True)]  # fmt: skip
    if not lists[0]:
        raise InputError(f"{path} has columns but no rows; give a file with at least one row")
    if tags is not None:
        for row, (words, marks) in enumerate(zip(*lists, strict=True), start=1):
            if len(words) != len(marks):
                raise row_error(
                    path, row, f"{len(words)} tokens in {tokens!r} and {len(marks)} tags in {tags!r}: give each one tag"
                )
    texts, *labels = ([SEPARATOR.join(parts) for parts in rows] for rows in lists)
    return Table(path, texts, labels[0] if labels else None, understood=read.understood, separator=SEPARATOR)


def _parts(path: Path, row: int, column: str, cell: Any) -> list[str]:
    parts = cell.split() if isinstance(cell, str) else cell
    if not isinstance(parts, Sequence) or not len(parts):
        raise row_error(path, row, f"column {column!r} holds no list of texts; fill it in or remove the row")
    texts: list[Any] = [str(part) if type(part) is int else part for part in parts]
    wrong = next((part for part in texts if not isinstance(part, str) or not part.strip()), None)
    if wrong is not None or None in texts:
        raise row_error(
            path, row, f"column {column!r} holds {wrong!r} in its list; only texts with a letter can be used"
        )
    return [" ".join(text.split()) for text in texts]
