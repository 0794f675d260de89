"""Read files of Debian packages: of an installed package, or else of one that apt downloads.

Nothing is installed and root is not needed: `apt-get download` fetches the archive, and `dpkg-deb` unpacks it into a
temporary folder.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskedge.demo.fetch import MB, FetchError, Log, cache_folder, writing


@dataclass(frozen=True)
class Package:
    """A Debian package and the folder that it installs its files into."""

    name: str
    size: int  # bytes to download
    root: str


@contextmanager
def files_of(package: Package, log: Log) -> Iterator[Path]:
    """Provide the folder with the package's files inside the block.

    Raises:
        FetchError: The package is not installed and apt cannot fetch it.
    """
    installed = Path(package.root)
    if installed.is_dir():
        yield installed
        return
    cache = cache_folder()
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as tmp:
        log(f"fetching the Debian package {package.name} ({package.size / MB:.0f} MB, once)")
        _run(package, ["apt-get", "download", "-qq", package.name], Path(tmp))
        archives = list(Path(tmp).glob("*.deb"))
        if len(archives) != 1:
            raise _failed(package, f"apt-get left {len(archives)} archives")
        _run(package, ["dpkg-deb", "-x", archives[0].name, "unpacked"], Path(tmp))
        folder = Path(tmp, "unpacked", package.root.lstrip("/"))
        if not folder.is_dir():
            raise _failed(package, f"the archive has no {package.root}")
        yield folder


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise _failed(package, f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("W:")]
        raise _failed(package, lines[-1] if lines else f"{command[0]} ended with code {done.returncode}")


def _failed(package: Package, reason: str) -> FetchError:
    return FetchError(
        f"the Debian package {package.name} is not installed and could not be fetched: {reason}. "
        f"Run `sudo apt-get install {package.name}`, or `sudo apt-get update` if apt does not know it; on another "
        f"system copy its folder to {package.root}"
    )
