"""One coordinator at a time for a fleet."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskedge.errors import InputError

_LOCK = ".coordinator"


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Makes sure that one coordinator at a time works with a folder; freed when the process ends, however it does.

    Raises:
        InputError: another one does.
    """
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another coordinator works with this folder: end it first") from None
        yield


def coordinated(folder: Path) -> bool:
    """Whether a coordinator works with the folder now."""
    if not (folder / _LOCK).exists():
        return False
    try:
        with sole(folder):
            return False
    except InputError:
        return True
