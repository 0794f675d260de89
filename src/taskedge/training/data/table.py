"""Inputs and their answers from a file: CSV, TSV, JSON lines, Parquet or plain text, by the suffix.

    table = read_table("train.csv", text="review", label="stars")
    labels = label_set(table)                      # ["1", "2", "3", "4", "5"]
    check_labels(read_table("eval.jsonl", "review", "stars"), labels)

A label is what the file says, as text: "007" stays "007", and 1 in a Parquet file (or 1.0, as numbers become beside
a missing one) is "1". Class names that the ``datasets`` library stored there are used. Its loaders are not:
JSON turns texts that look like dates into time stamps, CSV shifts the columns where rows are wider than the header,
Parquet leaves lock files behind and fails on a file without rows, and none tells the row of a fault.

A plain text file has one column, ``text``: its paragraphs, or its lines where no blank line parts it.

Rows are counted from 1; the header and blank lines are not counted.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, did_you_mean

COUNTED = "rows are counted from 1, without the header and blank lines"


@dataclass(frozen=True)
class Table:
    """What one file or folder holds. ``texts[i]`` and ``labels[i]`` come from row ``i + 1``."""

    path: Path
    texts: list[str]
    """What the model is given: a text, a prompt, or the path of an image (from the folder where the file is)."""
    labels: list[str] | None = None
    """The answers, as they are written: a class, a number, or a response."""

    def __len__(self) -> int:
        return len(self.texts)


def read_table(path: str | Path, text: str | Sequence[str], label: str | None = None) -> Table:
    """Reads the text of every row, and its label where ``label`` names a column.

    Several text columns are joined by a line break, empty ones left out. Numbers and truth values count as text.
    The file is read anew each time, and nothing is written.

    Raises InputError, with the row where there is one: no such file or column, a suffix that is not known, no rows,
    a row without text or label, a value that is not text, bytes that are not UTF-8, a line that is not CSV or JSON.
    """
    path = Path(path)
    names = [text] if isinstance(text, str) else list(text)
    if not names:
        raise InputError("no text column is named; name at least one")
    if label in names:
        raise InputError(f"{label!r} is named as the label and as a text: the answer would stand in the question")
    wanted = [*names, label] if label is not None else names
    columns = _read(path, lambda there: _checked(path, wanted, there))
    if not columns[0]:
        raise InputError(f"{path} has columns but no rows; give a file with at least one row")
    rows = range(len(columns[0]))
    parts = [
        [_as_text(path, row, name, column[row]) for row in rows] for name, column in zip(names, columns, strict=False)
    ]
    texts = ["\n".join(part for part in row if part.strip()) for row in zip(*parts, strict=True)]
    _all_there(path, " and ".join(map(repr, names)), texts)
    if label is None:
        return Table(path, texts)
    labels = [_as_text(path, row, label, columns[-1][row]) for row in rows]
    _all_there(path, repr(label), labels)
    return Table(path, texts, labels)


def column_names(path: str | Path) -> list[str]:
    """The names of all columns, in the order of the file.

    Raises InputError: as :func:`read_table` does for a file that cannot be read.
    """
    names: list[str] = []

    def none(there: Sequence[str]) -> list[str]:
        names.extend(there)
        return []

    _read(Path(path), none)
    return names


def label_set(table: Table) -> list[str]:
    """The distinct labels in a fixed order: by number where all are whole numbers, else by character.

    Raises InputError where there is only one: then there is nothing to learn.
    """
    labels = set(_labels(table))
    if len(labels) < 2:
        raise InputError(f"{table.path}: every row has the label {labels.pop()!r}; training needs at least two classes")
    if all(re.fullmatch("-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def as_number(label: str) -> float | None:
    """A label as a number; None where it is not written as one, or is not finite."""
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", label):
        return None
    number = float(label)
    return number if math.isfinite(number) else None


def check_labels(table: Table, labels: Sequence[str]) -> None:
    """Raises InputError where ``table`` has a label that is not among ``labels``, those the model was trained on."""
    known = set(labels)
    unknown = [(row, label) for row, label in enumerate(_labels(table), start=1) if label not in known]
    if unknown:
        row, label = unknown[0]
        shown = ", ".join(map(repr, labels[:20])) + (", ..." if len(labels) > 20 else "")
        raise _fault(
            table.path,
            row,
            f"the label {label!r} does not occur in training{did_you_mean(label, labels)} (labels: {shown}); "
            f"{len(unknown)} of {len(table)} rows are concerned: correct or remove them, or train on them too",
        )


def _labels(table: Table) -> list[str]:
    if table.labels is None:
        raise InputError(f"{table.path} was read without labels; name its label column")
    return table.labels


# --- values -----------------------------------------------------------------------------------------------------------


def _as_text(path: Path, row: int, column: str, value: object) -> str:
    """A cell as text, empty where there is nothing in it. ``row`` is counted from 0 here."""
    if isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise _fault(
                path, row + 1, f"column {column!r} holds half of a surrogate pair; remove the broken character"
            )
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    raise _fault(
        path,
        row + 1,
        f"column {column!r} holds a value of type {type(value).__name__}; only texts and numbers can be used",
    )


def _all_there(path: Path, what: str, values: list[str]) -> None:
    missing = [row for row, value in enumerate(values, start=1) if not value.strip()]
    if missing:
        raise _fault(path, missing[0], f"{what} is empty ({len(missing)} such rows); fill them in or remove these rows")


def _fault(path: Path, row: int, what: str) -> InputError:
    return InputError(f"{path}, row {row}: {what} ({COUNTED})" if row else f"{path}, header: {what}")


# --- files ------------------------------------------------------------------------------------------------------------


Choose = Callable[[Sequence[str]], list[str]]
"""Says which of the columns that are there are wanted."""


def _read(path: Path, choose: Choose) -> list[list[Any]]:
    """The wanted columns of a file, one list each."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(f"{path}: unknown suffix {path.suffix!r}{did_you_mean(path.suffix, READERS)} (known: {known})")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty; give a file with at least one row")
        return reader(path, choose)
    except FileNotFoundError:
        raise InputError(f"no file {path}{_near(path)}") from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check its name and its permissions"
        ) from error


def _near(path: Path) -> str:
    """What stands in the folder instead of a file that is not there."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent} either"
    there = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS)
    stems = difflib.get_close_matches(path.stem, {Path(name).stem for name in there}, n=3, cutoff=0.5)
    near = [name for name in there if Path(name).stem in stems]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; {path.parent} holds {', '.join(there[:5]) or 'no table'}"


def _checked(path: Path, names: list[str], there: Sequence[str]) -> list[str]:
    """``names``, each of which is there, and once."""
    counts = Counter(there)
    for name in names:
        if name not in counts:
            shown = ", ".join(map(repr, there)) or "none"
            raise InputError(f"{path}: no column {name!r}{did_you_mean(name, there)} (columns: {shown})")
        if counts[name] > 1:
            raise InputError(f"{path}: {counts[name]} columns are called {name!r}; rename all but one")
    return names


def _read_csv(path: Path, choose: Choose, separator: str = ",") -> list[list[Any]]:
    def records(content: str, strict: bool) -> Iterator[list[str]]:
        return filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=strict))

    rows: list[list[str]] = []
    with _long_fields():
        content = _decoded(path, lambda start: sum(1 for _ in records(start, strict=False)) - 1)
        try:
            for fields in records(content, strict=True):
                rows.append(fields)
        except csv.Error as error:
            raise _fault(path, len(rows), f"not valid CSV ({error}); is a quotation mark left open?") from None
    header = rows.pop(0) if rows else []
    names = choose(header)
    for row, fields in enumerate(rows, start=1):
        if len(fields) != len(header):
            what = f"{len(fields)} fields where the header has {len(header)}"
            raise _fault(
                path, row, f"{what}; put quotation marks around a text that holds {separator!r} or a line break"
            )
    return [[fields[place] for fields in rows] for place in map(header.index, names)]


def _read_tsv(path: Path, choose: Choose) -> list[list[Any]]:
    return _read_csv(path, choose, separator="\t")


def _read_txt(path: Path, choose: Choose) -> list[list[Any]]:
    content = _decoded(path, lambda start: start.count("\n") + 1).replace("\r\n", "\n")
    parts = re.split(r"\n\s*\n", content)
    parts = [part.strip("\n") for part in (parts if len(parts) > 1 else content.split("\n")) if part.strip()]
    return [parts for _ in choose(["text"])]


def _read_jsonl(path: Path, choose: Choose) -> list[list[Any]]:
    def lines(content: str) -> Iterator[str]:
        return (line for line in content.split("\n") if line.strip())

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(fields := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return fields

    rows: list[dict[str, Any]] = []
    for row, line in enumerate(lines(_decoded(path, lambda start: sum(1 for _ in lines(start)))), start=1):
        try:
            fields = json.loads(line, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise _fault(path, row, f"not valid JSON ({error}); each line must hold one object") from None
        if not isinstance(fields, dict):
            raise _fault(path, row, 'not an object; each line must be like {"text": "..."}')
        rows.append(fields)
    names = choose(list(dict.fromkeys(name for fields in rows for name in fields))) if rows else ["text"]
    return [[fields.get(name) for fields in rows] for name in names]


def _read_parquet(path: Path, choose: Choose) -> list[list[Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # comes with datasets

    path.open("rb").close()  # a missing or forbidden file raises its own OSError here
    try:
        # By name: an open file would be read by threads that can abort the process when it ends.
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = choose(schema.names)
            table = file.read(columns=names)
        columns = [table[name].to_pylist() for name in names]
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    if b"huggingface" in (schema.metadata or {}):
        import datasets

        features = datasets.Features.from_arrow_schema(schema)
        for name, column in zip(names, columns, strict=True):
            if isinstance(features[name], datasets.ClassLabel):  # numbers; -1 stands for no label
                classes = dict(enumerate(features[name].names))
                column[:] = [classes.get(value) for value in column]
    return columns


def _decoded(path: Path, row_of_end: Callable[[str], int]) -> str:
    """The content of a UTF-8 file, without its byte order mark. ``row_of_end``: the row a beginning ends in."""
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        row = row_of_end(raw[: error.start].decode() + "x")
        raise _fault(path, row, f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


READERS: dict[str, Callable[[Path, Choose], list[list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
