r"""Texts with sets of labels: from several columns of 0 and 1, or from one column that lists the labels of each row.

    table = read_label_sets("posts.csv", ["text"], labels=["toxic", "rude"])
    table = read_label_sets("posts.csv", ["text"], label="tags", separator=",")
    table.labels[0]                                # "rude\ntoxic"; "" for a row without a label

A :class:`~taskedge.training.data.table.Table` holds texts, so the labels of a row are joined by line breaks, which no
label contains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.reporting.tables import count_text
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.table_readers import check_column_names, column_names, read_columns, row_error

DEFAULT_SEPARATOR = ","
"""Between the labels of a cell, if no other separator is given."""
_JOINT = "\n"
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def split_names(path: Path, label: str) -> tuple[str, ...]:
    """Return the columns that a value such as ``toxic,rude`` names: one, if a column of the file has that very name."""
    if "," not in label or label in column_names(path):
        return (label,)
    return tuple(name.strip() for name in label.split(",") if name.strip())


def read_label_sets(
    path: Path,
    text: Sequence[str],
    *,
    label: str | None = None,
    labels: Sequence[str] = (),
    separator: str = DEFAULT_SEPARATOR,
) -> Table:
    """Read the text of every row, and its set of labels if columns are named.

    Args:
        path: of the file.
        text: names of the text columns.
        label: the column that lists the labels of a row: a list (JSON, Parquet), or a text with ``separator`` between
            them. An empty cell is a row without a label.
        labels: columns of 0 and 1 (or false and true), one for each label, which has the name of its column.
        separator: between the labels of a text.

    Raises:
        InputError: see :func:`taskedge.training.data.table.read_table`; a cell that is neither 0 nor 1, or no list of
            labels. The message names row and column.
    """
    table = read_table(path, text)
    names = list(labels) or ([] if label is None else [label])
    if not names:
        return table
    for name in names:
        if name in text:
            raise InputError(f"{name!r} is named as a label and as a text: the answer would be part of the input")
        if names.count(name) > 1:
            raise InputError(f"--label {name!r} is given twice: name each column once")
    columns = read_columns(path, lambda available: check_column_names(path, names, available)).values
    if labels:
        shown = ["_".join(name.splitlines()) for name in labels]
        marks = [[_is_set(path, row, name, cell) for row, cell in enumerate(column, start=1)]
                 for name, column in zip(labels, columns, strict=True)]  # fmt: skip
        sets = [[name for name, mark in zip(shown, row, strict=True) if mark] for row in zip(*marks, strict=True)]
        repeated = 0
    else:
        lists = [_listed(path, row, names[0], cell, separator) for row, cell in enumerate(columns[0], start=1)]
        sets = [sorted(set(one)) for one in lists]
        repeated = sum(len(one) < len(parts) for one, parts in zip(sets, lists, strict=True))
    empty, several = sum(not one for one in sets), sum(len(one) > 1 for one in sets)
    line = f"{count_text(empty, 'row')} of {len(sets):,} without a label, {several:,} with several"
    if repeated:
        line += f"; in {count_text(repeated, 'row')} a label is repeated, and counts once"
    understood = f"{table.understood}; {line}"
    return replace(table, labels=[_JOINT.join(one) for one in sets], separator=_JOINT, understood=understood)


def _is_set(path: Path, row: int, column: str, cell: Any) -> bool:
    """Return whether a cell says that the label of its column applies."""
    value = _TRUTH.get(_shown(cell).strip().lower())
    if value is None:
        raise row_error(
            path,
            row,
            f"column {column!r} holds {cell!r}; a column of one label has 0 or 1 in each row (or false and true)",
        )
    return value


def _listed(path: Path, row: int, column: str, cell: Any, separator: str) -> list[str]:
    """Return the labels that a cell lists."""
    if cell is None or isinstance(cell, str | int | float):
        parts: Sequence[Any] = _shown(cell).split(separator)
    elif isinstance(cell, Sequence):
        parts = cell
    else:
        raise row_error(path, row, f"column {column!r} holds {type(cell).__name__}, no list of labels and no text")
    wrong = [part for part in parts if not isinstance(part, str | int | float)]
    if wrong:
        raise row_error(
            path, row, f"column {column!r} holds {wrong[0]!r} in its list; only texts and numbers can be used"
        )
    return [name for part in parts if (name := " ".join(_shown(part).split()))]


def _shown(cell: Any) -> str:
    """Return a cell as text; empty if there is nothing in it; a whole number has no point."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and not isinstance(cell, bool) and cell.is_integer():
        return str(int(cell))
    return str(cell)
