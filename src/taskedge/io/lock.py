"""A lock on an output, which one process at a time can hold.

The lock is the kernel's (``flock``), so it ends with the process, however that ends. It is held on a hidden file beside
the output, which names the process. A process that ends in order removes the file; one that is killed leaves it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from taskedge.errors import InputError
from taskedge.io.atomic import WriteError, require_parent

_WAIT_FOR_NAME_SECONDS = 1.0


class InUse(InputError):
    """An output that another process works on."""


@contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on an output inside the block.

    Args:
        path: file or folder, which need not exist, in an existing folder.

    Yields:
        Whether an earlier holder was killed: it left its lock file.

    Raises:
        InUse: another process, or another call in this process, holds the lock.
        WriteError: the lock file cannot be written.
    """
    require_parent(path)
    file = _acquire(path)
    try:
        was_killed = bool(file.read())
        file.truncate(0)
        file.write(f"{os.getpid()} {datetime.now().astimezone().isoformat(' ', 'seconds')}\n")
        file.flush()
        yield was_killed
    finally:
        lock_path(path).unlink(missing_ok=True)  # before the lock ends: afterwards it may be another holder's file
        file.close()


def lock_path(path: Path) -> Path:
    """Return the lock file of an output: a hidden file in the same folder."""
    if path.name in ("", ".."):  # the current folder, or one above it
        path = path.resolve()
    return path.with_name(f".{path.name}.lock")


def _acquire(path: Path) -> IO[str]:
    """Return the locked lock file, open to read and append."""
    name = lock_path(path)
    while True:
        try:
            file = name.open("a+", encoding="utf-8")
        except OSError as error:
            raise WriteError(path, str(error.strerror)) from None
        file.seek(0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise InUse(
                f"{path} is in use by {holder}: wait until that ends, or name another file with --out"
            ) from None
        except OSError as error:
            file.close()
            raise WriteError(path, f"its folder cannot lock files: {error.strerror}") from None
        if _is_open(file, name):
            return file
        file.close()  # the last holder removed this file after it was opened here


def _is_open(file: IO[str], path: Path) -> bool:
    """Return whether an open file still has the name ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    """Return the process that a lock file names. A holder that has just begun writes its name a moment later."""
    end = time.monotonic() + _WAIT_FOR_NAME_SECONDS
    while True:
        file.seek(0)
        pid, _, started = file.read().strip().partition(" ")
        if started:
            return f"process {pid} (started {started})"
        if time.monotonic() > end:
            return "another process"
        time.sleep(0.02)
