"""Atomic writes: a file or folder under its final name is always complete, also after a crash.

Content is written under a temporary name in the same folder, flushed to the disk with fsync, and renamed. Then the
folder that holds the name is flushed too, so that the rename itself survives a power failure.

The same rules hold for files and folders: the parent folder must exist, a symbolic link stays one and its target is
replaced, and the modes are those of the umask, whichever library wrote the content (safetensors makes private files).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskedge.errors import InputError


class WriteError(InputError):
    """A file or folder that cannot be written. ``reason`` holds the message of the operating system."""

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        self.reason = reason
        super().__init__(f"{path}: cannot be written ({reason}){advice}")


def write_atomic(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically; an existing file is replaced.

    Args:
        path: file to write, in an existing folder.
        content: all bytes of the file.
        private: restrict the file to its owner (0600), also while it is written.

    Raises:
        WriteError: the folder does not exist, or the disk is full; an existing file is untouched.
    """
    with atomic_file(path, private=private) as tmp:
        tmp.write_bytes(content)


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield an empty temporary file to write to; it becomes ``path`` when the block ends without an error.

    Args:
        path: file to write, in an existing folder.
        private: restrict the file to its owner (0600), also while it is written.

    Raises:
        WriteError: the folder does not exist, or the disk is full; an existing file is untouched.
    """
    target = link_target(path)
    require_parent(path)
    with _write_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    tmp = Path(name)
    try:
        with _write_errors(path):
            yield tmp
            _flush(tmp)
            if not private:  # mkstemp makes private files
                tmp.chmod(0o666 & ~_umask())
            tmp.replace(target)
            _flush(target.parent)
    finally:
        tmp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, private: bool = False, replace: bool = True, flush: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; it becomes ``path`` when the block ends without an error.

    An existing folder and the new one swap their names in one step where the system can (Linux). Elsewhere the old one
    is renamed first, and restored if the second rename fails: a process that is killed in between leaves it under a
    hidden name. Files in it get the read and write permissions of the umask; an executable file stays executable.

    Args:
        path: folder to write, in an existing folder.
        private: restrict the folder to its owner (0700), also while it is filled.
        replace: whether to replace a folder at ``path``. If False, a folder that another process has put there in the
            meantime is kept, and the new content is dropped.
        flush: whether to flush every file to the disk. False suits a cache, which can be filled again.

    Raises:
        WriteError: the parent folder does not exist, or the content cannot be written; a folder at ``path`` is
            untouched.
    """
    target = path.resolve()
    require_parent(path)
    with _write_errors(path):
        tmp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = tmp.with_name(f"{tmp.name}.old")
    try:
        with _write_errors(path):
            if not private:  # mkdtemp makes private folders
                tmp.chmod(0o777 & ~_umask())
            yield tmp
            for file in [*tmp.rglob("*"), tmp]:
                if file.is_symlink():
                    continue
                if not private and file.is_file():
                    file.chmod(file.stat().st_mode & 0o777 | 0o666 & ~_umask())
                if flush:
                    _flush(file)
            if not (replace and target.exists() and _swap_names(tmp, target)):
                if replace and target.exists():
                    target.rename(old)
                try:
                    tmp.rename(target)
                except OSError:
                    if replace or not target.is_dir():
                        raise
            _flush(target.parent)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def move_atomic(source: Path, path: Path) -> None:
    """Give a complete file the name ``path``; if that is a symbolic link, its target is replaced.

    Args:
        source: the file, flushed to the disk; afterwards it is gone.
        path: new name, in an existing folder.

    Raises:
        WriteError: it cannot be moved; an existing file is untouched.
    """
    target = link_target(path)
    require_parent(path)
    with _write_errors(path):
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:  # the link leads to another file system
                raise
            with atomic_file(target) as tmp:
                shutil.copyfile(source, tmp)
            source.unlink()
        _flush(target.parent)


def link_target(path: Path) -> Path:
    """Return the file or folder that a symbolic link leads to, whether or not it exists; any other path unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def require_parent(path: Path) -> None:
    """Check that the folder exists in which ``path``, or the target of a link there, is to be written.

    Raises:
        WriteError: it does not.
    """
    folder = link_target(path).parent
    if not folder.exists():
        raise WriteError(path, f"there is no folder {folder}", ": make it, or name a folder that exists")


def require_writable(path: Path) -> None:
    """Check that a file or folder can be made at ``path``, before any work: a file is made beside it and removed.

    Raises:
        WriteError: the folder does not exist or cannot be written to, or ``path`` is a device, a pipe or a socket.
    """
    target = link_target(path)
    require_parent(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise WriteError(path, "it is neither a file nor a folder", ": name another")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise WriteError(path, str(error.strerror), ": name a folder that can be written to") from None
    os.close(handle)
    Path(name).unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Append to a file and flush it to the disk. This is not atomic: a crash may leave a part of the content.

    Raises:
        WriteError: the file cannot be written.
    """
    with _write_errors(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of safetensors into a ``WriteError``."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(path, str(getattr(error, "strerror", None) or error)) from None


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; some network file systems cannot flush folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _swap_names(first: Path, second: Path) -> bool:
    """Swap the names of two folders in one step; return False where the C library or the file system cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
