r"""Inputs and their answers from a file.

    table = read_table("train.csv", text="review", label="stars")
    labels = label_set(table)                      # ["1", "2", "3", "4", "5"]
    check_labels(read_table("eval.jsonl", "review", "stars"), labels)

A label is the text in the file without surrounding blanks: "007" stays "007", and 1 in a Parquet file (or 1.0, as
numbers become beside a missing one) is "1". Class names that the ``datasets`` library stored in a file are used.

Rows are counted from 1; the header and blank lines are not counted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from taskedge.errors import InputError, did_you_mean
from taskedge.training.data.table_readers import check_column_names, read_columns, row_error


@dataclass(frozen=True)
class Table:
    """Content of one file or folder. ``texts[i]`` and ``labels[i]`` come from row ``i + 1``.

    Attributes:
        path: the file or folder.
        texts: inputs: a text, a prompt, or the path of an image (relative to the folder of the file).
        labels: answers: a class or a number without surrounding blanks, or a response with its blanks; None if they
            were not read.
        num_stripped_labels: number of labels that had surrounding blanks in the file.
        understood: a line about how the file was read; empty for a folder.
        separator: what separates the answers of a row; empty if a row has one.
        firsts, pairs: of two text columns, the first and the second; ``texts`` has both, joined.
    """

    path: Path
    texts: list[str]
    labels: list[str] | None = None
    num_stripped_labels: int = 0
    understood: str = field(default="", compare=False)
    separator: str = ""
    firsts: list[str] | None = field(default=None, compare=False)
    pairs: list[str] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def answers(self) -> list[str] | None:
        """All answers: those of the rows, or the parts of those."""
        if self.labels is None or not self.separator:
            return self.labels
        return [part for row in self.answers_by_row or () for part in row]

    @property
    def answers_by_row(self) -> list[list[str]] | None:
        """The answers of each row; a row with a separator and an empty label has none."""
        if self.labels is None or not self.separator:
            return None if self.labels is None else [[label] for label in self.labels]
        return [label.split(self.separator) if label else [] for label in self.labels]


def read_table(
    path: str | Path, text: str | Sequence[str], label: str | None = None, *, strip_labels: bool = True
) -> Table:
    """Read the text of every row, and its label if ``label`` names a column.

    Several text columns are joined by a line break; empty ones are left out. Numbers and truth values count as text.
    The file is read anew each time, and nothing is written. Blanks around a label are removed, unless ``strip_labels``
    is False, as for responses.

    Raises:
        InputError: no such file or column, an unknown suffix, no rows, a row without text or label, a value that is not
            text, bytes that are not UTF-8, or a line that is not CSV or JSON. The message names the row.
    """
    path = Path(path)
    text_names = [text] if isinstance(text, str) else list(text)
    if not text_names:
        raise InputError("no text column is named; name at least one")
    if label in text_names:
        raise InputError(f"{label!r} is named as the label and as a text: the answer would be part of the input")
    names = text_names if label is None else [*text_names, label]
    read = read_columns(path, lambda available: check_column_names(path, names, available))
    columns, understood = read.values, read.understood
    if not columns[0]:
        raise InputError(f"{path} has columns but no rows; give a file with at least one row")
    text_columns = [_texts(path, name, column) for name, column in zip(text_names, columns, strict=False)]
    texts = ["\n".join(part for part in row if part.strip()) for row in zip(*text_columns, strict=True)]
    _check_not_empty(path, " and ".join(map(repr, text_names)), texts)
    firsts, pairs = text_columns if len(text_columns) == 2 else (None, None)
    table = Table(path, texts, understood=understood, firsts=firsts, pairs=pairs)
    if label is None:
        return table
    labels = _texts(path, label, columns[-1])
    _check_not_empty(path, repr(label), labels)
    if not strip_labels:
        return replace(table, labels=labels)
    stripped = [label.strip() for label in labels]
    return replace(table, labels=stripped, num_stripped_labels=sum(map(str.__ne__, labels, stripped)))


def label_set(table: Table) -> list[str]:
    """Return the distinct labels in a fixed order: by number if all are whole numbers, otherwise by character.

    Raises:
        InputError: there is only one, so there is nothing to learn.
    """
    _require_labels(table)
    labels = set(table.answers or ())
    if len(labels) < 2:
        raise InputError(f"{table.path}: every row has the label {labels.pop()!r}; training needs at least two classes")
    if all(re.fullmatch("-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def as_number(label: str) -> float | None:
    """Return a label as a number; None if it is not written as one, or is not finite."""
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", label):
        return None
    number = float(label)
    return number if math.isfinite(number) else None


def class_index(labels: Sequence[str]) -> Callable[[str], int | None]:
    """Return a function that gives the index of a label among ``labels``; None for a label that is not among them.

    A label without an exact match is compared in the composed Unicode form (NFC), without surrounding blanks.
    """
    exact = {label: index for index, label in enumerate(labels)}
    composed = {_composed(label): index for label, index in reversed(exact.items())}
    return lambda label: exact.get(label, composed.get(_composed(label)))


def label_indices(labels: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the index of each label among ``classes``, all of which :func:`check_labels` has accepted."""
    index_of = class_index(classes)
    indices = [index_of(label) for label in labels]
    return [index for index in indices if index is not None]


def _composed(label: str) -> str:
    return unicodedata.normalize("NFC", label).strip()


def check_labels(table: Table, labels: Sequence[str]) -> None:
    """Check that every label of a table is among ``labels``, on which the model was trained.

    Raises:
        InputError: one is not.
    """
    index_of = class_index(labels)
    _require_labels(table)
    answers = table.answers_by_row or []
    unknown = [(row, label) for row, parts in enumerate(answers, start=1) for label in parts if index_of(label) is None]
    if unknown:
        row, label = unknown[0]
        shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
        advice = "correct or remove them, or train on them too"
        if all(re.fullmatch(r"LABEL_\d+", name) for name in labels):
            advice = "these are placeholders: name the classes in id2label of the model's config before training"
        raise row_error(
            table.path,
            row,
            f"the label {label!r} does not occur in training{did_you_mean(label, labels)} (labels: {shown}); "
            f"{len(unknown)} of {len(table)} rows are concerned: {advice}",
        )


def _require_labels(table: Table) -> list[str]:
    if table.labels is None:
        raise InputError(f"{table.path} was read without labels; name its label column")
    return table.labels


def _texts(path: Path, column: str, values: Sequence[object]) -> list[str]:
    return [_as_text(path, row, column, value) for row, value in enumerate(values, start=1)]


def _as_text(path: Path, row: int, column: str, value: object) -> str:
    """Return a cell as text; empty if there is nothing in it."""
    if isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise row_error(path, row, f"column {column!r} holds half of a surrogate pair; remove the broken character")
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    message = f"column {column!r} holds a value of type {type(value).__name__}; only texts and numbers can be used"
    raise row_error(path, row, message)


def _check_not_empty(path: Path, column: str, values: list[str]) -> None:
    missing = [row for row, value in enumerate(values, start=1) if not value.strip()]
    if missing:
        message = f"{column} is empty ({len(missing)} such rows); fill them in or remove these rows"
        raise row_error(path, missing[0], message)
