"""Text of a data file: unpacked if it is compressed, and decoded by its byte order mark."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError

ROW_NUMBERING = "rows are counted from 1, without the header and blank lines"

_GZIP = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_OTHERS = (
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: save the sheet as CSV, or unpack the archive"),
    (b"PAR1", "Parquet: give it the suffix .parquet"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it, or compress it with gzip"),
    (b"BZh", "compressed with bzip2: unpack it, or compress it with gzip"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it, or compress it with gzip"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet: save the sheet as CSV"),
)
"""Beginnings of files that are no text."""


@dataclass(frozen=True)
class FileText:
    """Text of a file.

    Attributes:
        text: without a byte order mark.
        encoding: name for messages, such as ``"UTF-8"`` or ``"UTF-16, gzip"``.
    """

    text: str
    encoding: str


@dataclass(frozen=True)
class FileContent:
    """Content of a table file.

    Attributes:
        names: its columns.
        column: returns the values of the column with an index.
        format: what the file was understood as, such as ``"CSV in UTF-8, separated by ';'"``.
    """

    names: list[str]
    column: Callable[[int], list[Any]]
    format: str


def row_error(path: Path, row: int, message: str) -> InputError:
    """Return an error about a row, from 1; row 0 is the header."""
    return InputError(f"{path}, row {row}: {message} ({ROW_NUMBERING})" if row else f"{path}, header: {message}")


def read_text(path: Path, row_of_end: Callable[[str], int] | None = None) -> FileText:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; gzip is unpacked.

    UTF-16 without a byte order mark is recognized by its zero bytes.

    Args:
        path: the file.
        row_of_end: returns the row in which a beginning of the text ends; without it, messages name the line.

    Raises:
        InputError: the file is empty, damaged, of another kind, or in another encoding; the message names the row or
            line.
        OSError: the file cannot be read.
    """
    raw, packed = _unpacked(path)
    if not raw:
        raise InputError(f"{path} is empty; give a file with at least one row")
    for beginning, what in _OTHERS:
        if raw.startswith(beginning):
            raise InputError(f"{path} is {what}")
    mark, codec, name = _encoding(raw)
    raw = raw[len(mark) :]
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode(codec, "ignore") + "x"
        advice = "save the file as UTF-8" if codec == "utf-8" else "write the file again as UTF-8"
        fault = f"byte 0x{raw[error.start]:02x} is not {name[:6].rstrip()}; {advice}"
        if row_of_end is None:
            raise InputError(f"{path}, line {before.count(chr(10)) + 1}: {fault}") from None
        raise row_error(path, row_of_end(before), fault) from None
    if not text:
        raise InputError(f"{path} is empty; give a file with at least one row")
    return FileText(text, f"{name}, gzip" if packed else name)


def _unpacked(path: Path) -> tuple[bytes, bool]:
    """Return the bytes of a file and whether they were compressed with gzip, whatever its suffix is."""
    raw = path.read_bytes()
    if not raw.startswith(_GZIP):
        if path.suffix.lower() == ".gz" and raw:
            raise InputError(f"{path} is not compressed with gzip: take .gz off its name, or compress it")
        return raw, False
    try:
        return gzip.decompress(raw), True
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is damaged ({error}): fetch or compress it again") from None


def _encoding(raw: bytes) -> tuple[bytes, str, str]:
    """Return byte order mark, codec and name of the encoding."""
    for mark, codec, name in _MARKS:
        if raw.startswith(mark):
            return mark, codec, name
    beginning = raw[:400]
    zeros = beginning[0::2].count(0), beginning[1::2].count(0)
    if len(beginning) >= 4 and max(zeros) > len(beginning) // 5 and min(zeros) == 0:
        return b"", "utf-16-le" if zeros[1] else "utf-16-be", "UTF-16 without a byte order mark"
    return b"", "utf-8", "UTF-8"
