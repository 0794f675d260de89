"""JSON files: one object a line, an array of objects, or columns by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.conversations import CHAT_COLUMNS
from taskedge.training.data.file_text import FileContent, read_text, row_error

_ROW_NAMES = {"text", "label", "prompt", "response", "image", "instruction", "tools", "turns", *CHAT_COLUMNS}
"""Names that tell a row from an object around rows."""
_TURN_NAMES = ({"role", "content"}, {"from", "value"})


def read_json(path: Path) -> FileContent:
    """Read an array of objects, objects one after another, an object with such an array, or columns by name."""
    file = read_text(path)
    text = file.text.strip()
    values, what = _json_values(path, text)
    return _one_object(path, values, file.encoding) or _objects(path, values, f"{what} in {file.encoding}")


def _one_object(path: Path, values: Sequence[Any], encoding: str) -> FileContent | None:
    """Return the rows or columns inside a single object; None if there are several, or it is a row itself."""
    if len(values) != 1 or not isinstance(values[0], dict):
        return None
    nested = [
        (name, value)
        for name, value in values[0].items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if any(pair <= turns[0].keys() for _, turns in nested for pair in _TURN_NAMES):
        return None  # one dialogue, whatever its column is called
    if len(nested) == 1 and not values[0].keys() & _ROW_NAMES:
        return _objects(path, nested[0][1], f"JSON array {nested[0][0]!r} in {encoding}")
    columns = _json_columns(values[0])
    if columns is None:
        return None
    return FileContent(list(columns), list(columns.values()).__getitem__, f"JSON columns in {encoding}")


def _json_columns(value: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Return the columns of an object that holds a list, or an object by row number, for each; None for others."""
    if value and all(isinstance(cells, dict) for cells in value.values()):
        keys = [list(cells) for cells in value.values()]
        return {name: list(value[name].values()) for name in value} if all(key == keys[0] for key in keys) else None
    if value and not value.keys() & set(CHAT_COLUMNS) and all(isinstance(cells, list) for cells in value.values()):
        lengths = {len(cells) for cells in value.values()}
        return value if len(lengths) == 1 else None
    return None


def read_jsonl(path: Path) -> FileContent:
    """Return the content of a file with an object in each line, or with an array of objects."""

    def lines(content: str) -> Iterator[str]:
        return (line for line in content.split("\n") if line.strip())

    file = read_text(path, lambda beginning: sum(1 for _ in lines(beginning)))
    first = next(lines(file.text), "").strip()
    if first == "[" or first.startswith("[{"):
        return _objects(path, _json_values(path, file.text.strip())[0], f"JSON array in {file.encoding}")
    rows: list[Any] = []
    for row, line in enumerate(lines(file.text), start=1):
        try:
            rows.append(json.loads(line, object_pairs_hook=_unique_fields))
        except (ValueError, RecursionError) as error:
            raise row_error(path, row, f"not valid JSON ({error}); each line must hold one object") from None
    return _one_object(path, rows, file.encoding) or _objects(path, rows, f"JSON lines in {file.encoding}")


def _json_values(path: Path, text: str) -> tuple[list[Any], str]:
    """Return the elements of an array, or values one after another, and the name of the format."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_fields)
    in_array = text.startswith("[")
    values: list[Any] = []
    place = _skip(text, 1 if in_array else 0)
    closed = not in_array
    while place < len(text):
        if in_array and text[place] == "]":
            closed, place = True, _skip(text, place + 1)
            break
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise row_error(path, len(values) + 1, f"not valid JSON ({error}); correct it") from None
        values.append(value)
        place = _skip(text, place)
        if in_array and text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif in_array and text[place : place + 1] not in ("]", ""):
            raise row_error(path, len(values), "not valid JSON: a comma is missing after the row; correct it")
    if not closed:
        raise row_error(path, len(values) + 1, "the JSON array has no end: the file is cut short; write it again")
    if place < len(text):
        raise InputError(f"{path}: there is text after the JSON array: write one array of objects, or JSON lines")
    return values, "JSON array" if in_array else "JSON objects"


def _skip(text: str, place: int) -> int:
    match = re.compile(r"\s*").match(text, place)
    return match.end() if match else place


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _objects(path: Path, rows: Sequence[Any], what: str) -> FileContent:
    for row, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise row_error(path, row, 'not an object; each row must be like {"text": "..."}')
    names = list(dict.fromkeys(name for fields in rows for name in fields)) if rows else ["text"]
    if not rows:
        raise InputError(f"{path} ({what}) has no rows; give a file with at least one row")
    return FileContent(names, lambda index: [fields.get(names[index]) for fields in rows], what)
