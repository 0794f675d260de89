"""One coordinator at a time for a fleet, and which process it is."""

from __future__ import annotations

import fcntl
import os
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
    with (folder / _LOCK).open("a") as lock:  # what stands there is the holder's until it is ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{folder}: another coordinator works with this folder: `taskedge cooperate stop` ends it"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def coordinated(folder: Path) -> bool:
    """Whether a coordinator works with the folder now."""
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def coordinator(folder: Path) -> int | None:
    """The process of the coordinator that works with the folder now; None: there is none.

    Raises:
        InputError: there is one, but the process that it says to be is not it.
    """
    if not coordinated(folder):
        return None
    lock = folder / _LOCK
    try:
        pid = int(lock.read_text())
        sure = _opened(pid, lock)
    except PermissionError:
        raise InputError(f"{folder}: its coordinator is another user's process ({pid}): ask as that user") from None
    except (OSError, ValueError):
        sure = False
    if not coordinated(folder):
        return None  # it ended meanwhile
    if not sure:
        raise InputError(f"{folder}: a coordinator works there, and does not say which process it is: end it yourself")
    return pid


def _opened(pid: int, path: Path) -> bool:
    """Whether the process holds the file open: a pid may belong to another process by now."""
    places = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").exists():  # not Linux: there is no cheap way to know
        os.kill(pid, 0)
        return True
    return any(place.exists() and place.samefile(path) for place in places.iterdir())
