"""Writing files and folders so that one under its name is always whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskedge.errors import InputError


def write_aside(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes a file under another name in the same folder, and renames it when it is whole and on the disk.

    Args:
        private: for the owner only (0600); never readable by others, not even while it is written.

    Raises:
        InputError: it cannot be written (no such folder, no space left); nothing is left behind.
    """
    with file_aside(path, private=private) as aside:
        aside.write_bytes(content)


@contextmanager
def file_aside(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A file beside ``path`` to write to; it is renamed to ``path`` at the end, once it is on the disk.

    Args:
        private: see :func:`write_aside`.

    Raises:
        InputError: it cannot be written (no such folder, no space left); nothing is left behind.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}): name a folder that exists") from None
    aside = Path(name)
    try:
        with _told(path):
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            if not private:  # else it stays as mkstemp makes it
                aside.chmod(0o666 & ~_umask())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, not there yet, to write to; at the end it takes the place of ``folder``.

    Raises:
        InputError: it cannot be written; what was there is as it was, and nothing else is left behind.
    """
    home = folder.resolve()
    aside, before = home.with_name(f".{home.name}.part"), home.with_name(f".{home.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with _told(folder):
            yield aside
            if home.exists():
                shutil.rmtree(before, ignore_errors=True)
                home.rename(before)
            aside.rename(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not home.exists():
            before.rename(home)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what the system, or safetensors, says of a failed write into one message."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({why})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
