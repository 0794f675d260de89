"""Readers of table files: CSV, JSON, Parquet and plain text, by the suffix of the file; and of data sets by name.

The loaders of the ``datasets`` library are not used for files. JSON turns texts that look like dates into time stamps,
CSV shifts the columns if rows are wider than the header, Parquet leaves lock files behind and fails on a file without
rows, and none tells the row of a fault.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, did_you_mean
from taskedge.reporting.tables import count_text
from taskedge.training.data.conll_files import read_conll
from taskedge.training.data.conversations import convert, converted_names
from taskedge.training.data.csv_files import read_csv, read_tsv
from taskedge.training.data.file_text import ROW_NUMBERING as ROW_NUMBERING
from taskedge.training.data.file_text import FileContent, read_text
from taskedge.training.data.file_text import row_error as row_error
from taskedge.training.data.hub_data import parse_hub_name, read_hub
from taskedge.training.data.json_files import read_json, read_jsonl

ChooseColumns = Callable[[Sequence[str]], list[str]]
"""Returns the names of the columns to read, of all names in the file."""

_MAX_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class ColumnsRead:
    """Columns of a file, one list each, and a line about how the file was understood."""

    values: list[list[Any]]
    understood: str


def read_columns(path: Path, choose: ChooseColumns) -> ColumnsRead:
    """Return the chosen columns of a file.

    Files of chats and instructions have ``prompt`` and ``response`` too (:mod:`.conversations`).

    Raises:
        InputError: no such file or column, an unknown suffix, or content that cannot be read, with its row.
    """
    with _explained(path):
        content = _content(path)
        made = converted_names(content.names)
        chosen = choose([*content.names, *made])
        values: dict[str, list[Any]] = {
            name: content.column(content.names.index(name)) for name in chosen if name in content.names
        }
        from_rows = [name for name in chosen if name not in values]
        sentence = ""
        if from_rows:

            def column(name: str) -> list[Any]:
                return content.column(content.names.index(name))

            columns, sentence = convert(path, content.names, column, from_rows)
            values |= zip(from_rows, columns, strict=True)
        num_rows = len(next(iter(values.values()), []))
        shown = ", ".join(map(repr, content.names[:_MAX_SHOWN_COLUMNS]))
        more = len(content.names) - _MAX_SHOWN_COLUMNS
        shown += f" and {more} more" if more > 0 else ""
        line = f"{path}: {content.format}; {count_text(num_rows, 'row')}; columns {shown}"
        return ColumnsRead([values[name] for name in chosen], f"{line}; {sentence}" if sentence else line)


def column_names(path: str | Path) -> list[str]:
    """Return the names of all columns in the order of the file, then those of a conversion.

    A file with a column ``text`` is not converted unless the user names a converted column.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    with _explained(path):
        names = _content(path).names
    return names if "text" in names else [*names, *converted_names(names)]


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the file system into messages."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no file {path}{_similar_files(path)}") from None
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; check its name and its permissions"
        ) from error


def _content(path: Path) -> FileContent:
    """Return the content of a file by its suffix, of which ``.gz`` is no part, or of a data set by its name."""
    name = parse_hub_name(path, [*READERS, *_ADVICE])
    if name is not None:
        return read_hub(path, name)
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    reader = READERS.get(suffix)
    if reader is None or (packed and suffix == ".parquet"):
        if suffix in _ADVICE:
            raise InputError(f"{path}: {_ADVICE[suffix]}")
        known = f"{', '.join(READERS)}; with .gz all but .parquet"
        shown = f"{suffix}.gz" if packed else path.suffix
        raise InputError(f"{path}: unknown suffix {shown!r}{did_you_mean(suffix, READERS)} (known: {known})")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty; give a file with at least one row")
    return reader(path)


def _similar_files(path: Path) -> str:
    """Return the end of a message about a missing file: the files in its folder that have a similar name."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent} either"
    present = sorted(
        file.name for file in path.parent.iterdir() if READERS.keys() & {suffix.lower() for suffix in file.suffixes}
    )
    stems = difflib.get_close_matches(path.stem, {Path(name).stem for name in present}, n=3, cutoff=0.5)
    similar = [name for name in present if Path(name).stem in stems]
    if similar:
        return f"; did you mean {' or '.join(map(repr, similar))}?"
    more = f" and {len(present) - 5} more" if len(present) > 5 else ""
    return f"; {path.parent} holds {', '.join(present[:5]) or 'no table'}{more}"


def _read_txt(path: Path) -> FileContent:
    """Return the only column, ``text``: the paragraphs of the file, or its lines if no blank line separates any."""
    file = read_text(path, lambda beginning: beginning.count("\n") + 1)
    content = file.text.replace("\r\n", "\n")
    parts, what = re.split(r"\n\s*\n", content), "paragraph"
    if len(parts) == 1:
        parts, what = content.split("\n"), "line"
    texts = [part.strip("\n") for part in parts if part.strip()]
    return FileContent(["text"], lambda index: texts, f"plain text in {file.encoding}, a row for each {what}")


def _read_parquet(path: Path) -> FileContent:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # a dependency of datasets

    path.open("rb").close()  # a missing or forbidden file raises its own OSError here

    def unreadable(error: Exception) -> InputError:
        return InputError(f"{path} cannot be read as Parquet ({error}); write it again")

    failures = (ArrowException, OSError, UnicodeDecodeError)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
    except failures as error:
        raise unreadable(error) from error

    def column(index: int) -> list[Any]:
        name = schema.names[index]
        try:
            # By name: threads that read an open file can abort the process when it ends.
            with parquet.ParquetFile(path) as file:
                values: list[Any] = file.read(columns=[name])[name].to_pylist()
        except failures as error:
            raise unreadable(error) from error
        if b"huggingface" in (schema.metadata or {}):
            import datasets

            feature = datasets.Features.from_arrow_schema(schema)[name]
            if isinstance(feature, datasets.ClassLabel):  # numbers; -1 stands for no label
                class_names = dict(enumerate(feature.names))
                return [class_names.get(value) for value in values]
        return values

    return FileContent(list(schema.names), column, "Parquet")


READERS: dict[str, Callable[[Path], FileContent]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": _read_parquet,
    ".conll": read_conll,
    ".iob": read_conll,
    ".iob2": read_conll,
    ".txt": _read_txt,
}
"""Readers by the suffix of the file."""

_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "spreadsheets are not read: save the sheet as CSV"),
    **dict.fromkeys((".arrow", ".feather"), "Arrow files are not read: write the data as Parquet"),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz"), "the archive is not read: unpack it"),
}
"""What to do with a file of a kind that is known and not read."""
