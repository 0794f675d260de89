"""Readers of table files: CSV, TSV, JSON lines, Parquet and plain text, by the suffix of the file.

The loaders of the ``datasets`` library are not used. JSON turns texts that look like dates into time stamps, CSV shifts
the columns if rows are wider than the header, Parquet leaves lock files behind and fails on a file without rows, and
none tells the row of a fault.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, did_you_mean

ROW_NUMBERING = "rows are counted from 1, without the header and blank lines"

ChooseColumns = Callable[[Sequence[str]], list[str]]
"""Returns the names of the columns to read, of all names in the file."""


def read_columns(path: Path, choose: ChooseColumns) -> list[list[Any]]:
    """Return the chosen columns of a file, one list each.

    Raises:
        InputError: no such file or column, an unknown suffix, or content that cannot be read, with its row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(f"{path}: unknown suffix {path.suffix!r}{did_you_mean(path.suffix, READERS)} (known: {known})")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty; give a file with at least one row")
        return reader(path, choose)
    except FileNotFoundError:
        raise InputError(f"no file {path}{_similar_files(path)}") from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check its name and its permissions"
        ) from error


def column_names(path: str | Path) -> list[str]:
    """Return the names of all columns, in the order of the file.

    Raises:
        InputError: the file cannot be read.
    """
    names: list[str] = []

    def choose_none(available: Sequence[str]) -> list[str]:
        names.extend(available)
        return []

    read_columns(Path(path), choose_none)
    return names


def check_column_names(path: Path, names: list[str], available: Sequence[str]) -> list[str]:
    """Return ``names`` if each of them is among the columns of a file exactly once.

    Raises:
        InputError: a column is missing, or several have its name.
    """
    counts = Counter(available)
    for name in names:
        if name not in counts:
            shown = ", ".join(map(repr, available)) or "none"
            raise InputError(f"{path}: no column {name!r}{did_you_mean(name, available)} (columns: {shown})")
        if counts[name] > 1:
            raise InputError(f"{path}: {counts[name]} columns are called {name!r}; rename all but one")
    return names


def row_error(path: Path, row: int, message: str) -> InputError:
    """Return an error about a row, from 1; row 0 is the header."""
    return InputError(f"{path}, row {row}: {message} ({ROW_NUMBERING})" if row else f"{path}, header: {message}")


def _similar_files(path: Path) -> str:
    """Return the end of a message about a missing file: the files in its folder that have a similar name."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent} either"
    present = sorted(file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS)
    stems = difflib.get_close_matches(path.stem, {Path(name).stem for name in present}, n=3, cutoff=0.5)
    similar = [name for name in present if Path(name).stem in stems]
    if similar:
        return f"; did you mean {' or '.join(map(repr, similar))}?"
    return f"; {path.parent} holds {', '.join(present[:5]) or 'no table'}"


def _read_csv(path: Path, choose: ChooseColumns, separator: str = ",") -> list[list[Any]]:
    def records(content: str, strict: bool) -> Iterator[list[str]]:
        return filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=strict))

    rows: list[list[str]] = []
    with _unlimited_field_size():
        content = _decode(path, lambda beginning: sum(1 for _ in records(beginning, strict=False)) - 1)
        try:
            for fields in records(content, strict=True):
                rows.append(fields)
        except csv.Error as error:
            message = f"not valid CSV ({error}); is a quotation mark left open?"
            raise row_error(path, len(rows), message) from None
    header = rows.pop(0) if rows else []
    names = choose(header)
    for row, fields in enumerate(rows, start=1):
        if len(fields) != len(header):
            raise row_error(
                path,
                row,
                f"{len(fields)} fields where the header has {len(header)}; put quotation marks around a text that "
                f"holds {separator!r} or a line break",
            )
    return [[fields[index] for fields in rows] for index in map(header.index, names)]


def _read_tsv(path: Path, choose: ChooseColumns) -> list[list[Any]]:
    return _read_csv(path, choose, separator="\t")


def _read_txt(path: Path, choose: ChooseColumns) -> list[list[Any]]:
    """Return the only column, ``text``: the paragraphs of the file, or its lines if no blank line separates any."""
    content = _decode(path, lambda beginning: beginning.count("\n") + 1).replace("\r\n", "\n")
    parts = re.split(r"\n\s*\n", content)
    if len(parts) == 1:
        parts = content.split("\n")
    texts = [part.strip("\n") for part in parts if part.strip()]
    return [texts for _ in choose(["text"])]


def _read_jsonl(path: Path, choose: ChooseColumns) -> list[list[Any]]:
    def lines(content: str) -> Iterator[str]:
        return (line for line in content.split("\n") if line.strip())

    def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a name occurs twice")
        return fields

    rows: list[dict[str, Any]] = []
    for row, line in enumerate(lines(_decode(path, lambda beginning: sum(1 for _ in lines(beginning)))), start=1):
        try:
            fields = json.loads(line, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            raise row_error(path, row, f"not valid JSON ({error}); each line must hold one object") from None
        if not isinstance(fields, dict):
            raise row_error(path, row, 'not an object; each line must be like {"text": "..."}')
        rows.append(fields)
    names = choose(list(dict.fromkeys(name for fields in rows for name in fields))) if rows else ["text"]
    return [[fields.get(name) for fields in rows] for name in names]


def _read_parquet(path: Path, choose: ChooseColumns) -> list[list[Any]]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # a dependency of datasets

    path.open("rb").close()  # a missing or forbidden file raises its own OSError here
    try:
        # By name: threads that read an open file can abort the process when it ends.
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
                class_names = dict(enumerate(features[name].names))
                column[:] = [class_names.get(value) for value in column]
    return columns


def _decode(path: Path, row_of_end: Callable[[str], int]) -> str:
    """Return the content of a UTF-8 file without its byte order mark.

    Args:
        path: the file.
        row_of_end: returns the row in which a beginning of the content ends.
    """
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        row = row_of_end(raw[: error.start].decode() + "x")
        raise row_error(path, row, f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


@contextmanager
def _unlimited_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters in a field."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


READERS: dict[str, Callable[[Path, ChooseColumns], list[list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
"""Readers by the suffix of the file."""
