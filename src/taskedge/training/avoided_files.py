"""The entries of delta and support files: those that a selection avoids, and those whose overlap is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskedge.delta.file import load
from taskedge.errors import DeltaError, InputError
from taskedge.selection.avoid import Entries
from taskedge.selection.support import load_support
from taskedge.training.tasks import Log


def entries_of_file(path: Path) -> list[Mapping[str, Entries]]:
    """Return the entries by linear of a delta or support file; a delta of several tasks has a part for each task.

    Raises:
        DeltaError, InputError: the file is neither a delta nor a support.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Mapping[str, Entries]], int]:
    """Return the entries of a file, as :func:`entries_of_file`, and the number of its linears with a product."""
    try:
        delta = load(path)
    except DeltaError as error:
        try:
            support = load_support(path)
        except InputError:
            raise error from None
        return [support.linears], len(support.low_rank)
    return [delta.linears, *(head.gated for head in delta.heads.values() if head.gated)], len(delta.low_rank)


def avoided_files(paths: Sequence[Path], log: Log) -> dict[str, Any]:
    """Return the argument of :func:`taskedge.select` that avoids the entries of files; nothing for no files.

    Raises:
        DeltaError, InputError: a file is neither a delta nor a support, or has no entries.
    """
    avoid: list[Mapping[str, Entries]] = []
    for path in paths:
        parts, products = _read(path)
        count = sum(len(entries.rows) for part in parts for entries in part.values())
        if not count:
            raise InputError(f"{path} has no entries to avoid, but low-rank products or full parameters only: leave "
                             "it out")  # fmt: skip
        beside = f"; its low-rank products in {products} linears change other weights, too" if products else ""
        log(f"avoiding the {count:,} entries of {path}{beside}")
        avoid += parts
    return {"avoid": avoid} if avoid else {}
