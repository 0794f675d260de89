"""At most one coordinator per folder, and the process id of that coordinator.

The lock is the kernel's (``flock``), so it ends with the process, however that ends. The process id is written into
the locked file, and checked against the files that the process has open: an id may belong to another process by now.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskedge.errors import InputError

_LOCK_FILE = ".coordinator"


@contextmanager
def hold_coordinator_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no second coordinator works there.

    Raises:
        InputError: Another coordinator holds it.
    """
    with (folder / _LOCK_FILE).open("a") as lock:  # appending keeps the id of a process that holds the lock
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


def is_coordinated(folder: Path) -> bool:
    """Return whether a coordinator works with the folder now."""
    try:
        with (folder / _LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def coordinator_pid(folder: Path) -> int | None:
    """Return the process id of the coordinator that works with the folder now; None if there is none.

    Raises:
        InputError: There is one, and it belongs to another user, or the written process id is not its id.
    """
    if not is_coordinated(folder):
        return None
    path = folder / _LOCK_FILE
    try:
        pid = int(path.read_text())
        is_holder = _has_open(pid, path)
    except PermissionError:
        raise InputError(f"{folder}: its coordinator is another user's process ({pid}): ask as that user") from None
    except (OSError, ValueError):
        is_holder = False
    if not is_coordinated(folder):
        return None  # it ended in the meantime
    if not is_holder:
        raise InputError(f"{folder}: a coordinator works there, and does not say which process it is: end it yourself")
    return pid


def _has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open."""
    if not Path("/proc/self/fd").exists():  # not Linux: no cheap way to know
        os.kill(pid, 0)
        return True
    return any(link.exists() and link.samefile(path) for link in Path(f"/proc/{pid}/fd").iterdir())
