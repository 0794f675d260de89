"""Writing files so that one under its name is always whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from taskedge.errors import InputError


def write_aside(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes a file under another name in the same folder, and renames it when it is whole and on the disk.

    Args:
        private: for the owner only (0600); never readable by others, not even while it is written.

    Raises:
        InputError: it cannot be written (no such folder, no space left); nothing is left behind.
    """
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}): name a folder that exists") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not private:  # else it stays as mkstemp makes it
            Path(aside).chmod(0o666 & ~_umask())
        Path(aside).replace(path)
    except BaseException as error:
        Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
