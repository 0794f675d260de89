"""Files that this process has mapped into its memory: which tensor lies in which, and whether they still say the same.

A loader that maps a safetensors file hands out tensors that lie in it. The mapping is private: what is written to it
is this process's own, page by page, and never reaches the file. Told by ``/proc``, so on Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from taskedge.errors import BaseMismatch

MAPS = Path("/proc/self/maps")
_KEY = "_taskedge_mapped"


@dataclass(frozen=True)
class Mapping:
    """A piece of a file, at the addresses from ``start`` to ``end``."""

    start: int
    end: int
    path: Path
    inode: int

    def holds(self, tensor: Tensor) -> bool:
        """Whether all of the tensor lies in it."""
        start = tensor.data_ptr()
        return self.start <= start and start + tensor.nbytes <= self.end


def mappings() -> list[Mapping]:
    """Those of this process; empty where the system does not tell."""
    found = []
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if int(inode) and path:
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(Mapping(start, end, Path(path[0]), int(inode)))
    return found


def mapped(tensors: Iterable[Tensor]) -> dict[Mapping, list[Tensor]]:
    """Those of the tensors that lie in files, by where they do."""
    known = mappings()
    found: dict[Mapping, list[Tensor]] = {}
    for tensor in tensors:
        for place in known:
            if tensor.device.type == "cpu" and place.holds(tensor):
                found.setdefault(place, []).append(tensor)
    return found


def drop_pages(tensor: Tensor) -> None:
    """Takes a tensor that lies in a file out of this process's memory; it would be read from the file again.

    Only for one that was never written to: that would be lost.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL("libc.so.6").madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def watch(model: nn.Module, places: Iterable[Mapping]) -> None:
    """Remembers how the files stand, for :func:`check_unchanged`."""
    model.__dict__[_KEY] = {place.path: stamp for place in places if (stamp := _stamp(place.path))}


def check_unchanged(model: nn.Module) -> None:
    """Makes sure that the files, from which weights were read since they were mapped, are as they were.

    A file of another inode has taken the place of the mapped one, which is still there for those who mapped it.

    Raises:
        BaseMismatch: one was written to.
    """
    for path, before in model.__dict__.get(_KEY, {}).items():
        now = _stamp(path)
        if now is not None and now[0] == before[0] and now != before:
            raise BaseMismatch(
                f"{path} was changed while the model was mapped from it, so what was computed cannot be relied on: "
                "start again, and replace files by renaming others onto them"
            )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of the last change; None where the file is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
