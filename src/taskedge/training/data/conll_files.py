"""CoNLL files: a token with its tag on each line, and a blank line after each row."""

from __future__ import annotations

from pathlib import Path

from taskedge.errors import InputError
from taskedge.training.data.file_text import FileContent, read_text


def read_conll(path: Path) -> FileContent:
    """Return the columns ``tokens`` and ``tags``: the first and the last field of each line.

    Lines that start with ``-DOCSTART-`` or ``# `` are skipped.
    """
    file = read_text(path)
    rows: list[list[list[str]]] = [[]]
    for number, line in enumerate(file.text.splitlines(), start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            rows.append([])
        elif not line.startswith(("-DOCSTART-", "# ")):
            if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
                raise InputError(
                    f"{path}, line {number}: {line!r} is no token with a tag: separate the two by a blank or a tab"
                )
            rows[-1].append(fields)
    kept = [row for row in rows if row]
    columns = [[[fields[index].strip() for fields in row] for row in kept] for index in (0, -1)]
    return FileContent(
        ["tokens", "tags"], columns.__getitem__, f"CoNLL in {file.encoding}, a token with its tag a line"
    )
