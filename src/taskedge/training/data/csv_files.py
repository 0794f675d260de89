"""CSV files by any usual separator, which is found from the header and the rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskedge.training.data.file_text import FileContent, read_text, row_error

_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}


@dataclass(frozen=True)
class _Parsed:
    """Records of a CSV text by one separator, up to the first error."""

    separator: str
    rows: list[list[str]]
    error: csv.Error | None

    @property
    def width(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    @property
    def num_fitting(self) -> int:
        return sum(len(row) == self.width for row in self.rows[1:])

    @property
    def is_regular(self) -> bool:
        return self.error is None and self.width > 1 and self.num_fitting == len(self.rows) - 1


def _records(text: str, separator: str, *, strict: bool) -> Iterator[list[str]]:
    return filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict))


def _parsed(text: str, separator: str) -> _Parsed:
    rows: list[list[str]] = []
    try:
        for fields in _records(text, separator, strict=True):
            rows.append(fields)
    except csv.Error as error:
        return _Parsed(separator, rows, error)
    return _Parsed(separator, rows, None)


def _split(text: str, usual: str) -> _Parsed:
    """Return the records by the separator that the header and the rows agree on; if several do, by the usual one.

    A text of one column has no separator. The header tells it from one whose rows have a fault.
    """
    stated = re.match(r"sep=(.)\r?\n", text)  # a line for Excel
    if stated:
        return _parsed(text[stated.end() :], stated[1])
    best = _parsed(text, usual)
    if best.is_regular:
        return best
    header = next(filter(None, map(str.strip, text.splitlines())), "")
    others = [_parsed(text, separator) for separator in _SEPARATORS if separator != usual and separator in header]
    regular = [other for other in others if other.is_regular]
    if regular:
        return max(regular, key=lambda other: other.width)
    faulty = [other for other in others if other.width > 1 and other.num_fitting * 2 >= len(other.rows)]
    return max(faulty, key=lambda other: other.num_fitting) if best.width <= 1 and faulty else best


def read_csv(path: Path, usual: str = ",") -> FileContent:
    """Return the content of a CSV file whose separator is usually ``usual``."""

    def row_of_end(beginning: str) -> int:
        return sum(1 for _ in _records(beginning, usual, strict=False)) - 1

    with _unlimited_field_size():
        file = read_text(path, row_of_end)
        parsed = _split(file.text, usual)
    if parsed.error is not None:
        message = (
            f"not valid CSV ({parsed.error}); is a quotation mark left open, or the separator none of , ; | and tab?"
        )
        raise row_error(path, len(parsed.rows), message)
    header, rows, separator = parsed.rows[0] if parsed.rows else [], parsed.rows[1:], parsed.separator

    def column(index: int) -> list[str]:
        for row, fields in enumerate(rows, start=1):
            if len(fields) != len(header):
                raise row_error(
                    path,
                    row,
                    f"{len(fields)} fields where the header has {len(header)}; put quotation marks around a text that "
                    f"holds {separator!r} or a line break",
                )
        return [fields[index] for fields in rows]

    split = f", separated by {_SEPARATORS.get(separator, repr(separator))}" if len(header) > 1 else ""
    return FileContent(header, column, f"CSV in {file.encoding}{split}")


def read_tsv(path: Path) -> FileContent:
    """Return the content of a CSV file that is usually separated by tabs."""
    return read_csv(path, "\t")


@contextmanager
def _unlimited_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters in a field."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
