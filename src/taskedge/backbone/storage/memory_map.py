"""Files mapped into this process's memory: which tensors lie in which file, and whether the files have changed.

A loader that maps a safetensors file returns tensors that lie in the mapping. The mapping is private: a page that this
process writes to becomes its own copy and never reaches the file. Reads ``/proc``, so it works on Linux only.
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
_STAMPS_KEY = "_taskedge_mapped"


@dataclass(frozen=True)
class FileMapping:
    """A part of a file that is mapped at the addresses from ``start`` to ``end``."""

    start: int
    end: int
    path: Path
    inode: int

    def contains(self, tensor: Tensor) -> bool:
        """Return whether all of the tensor lies in the mapping."""
        start = tensor.data_ptr()
        return self.start <= start and start + tensor.nbytes <= self.end


def file_mappings() -> list[FileMapping]:
    """Return the mappings of this process; an empty list on a system without ``/proc``."""
    if not MAPS.exists():
        return []
    mappings = []
    for line in MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if int(inode) and path:
            start, end = (int(address, 16) for address in addresses.split("-"))
            mappings.append(FileMapping(start, end, Path(path[0]), int(inode)))
    return mappings


def mapped_tensors(tensors: Iterable[Tensor]) -> dict[FileMapping, list[Tensor]]:
    """Return the tensors that lie in mapped files, by mapping."""
    mappings = file_mappings()
    result: dict[FileMapping, list[Tensor]] = {}
    for tensor in tensors:
        for mapping in mappings:
            if tensor.device.type == "cpu" and mapping.contains(tensor):
                result.setdefault(mapping, []).append(tensor)
    return result


def release_pages(tensor: Tensor) -> None:
    """Release the memory of a tensor that lies in a file; reading the tensor would load it from the file again.

    Only for a tensor that was never written to: its changes would be lost.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL("libc.so.6").madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def remember_files(model: nn.Module, mappings: Iterable[FileMapping]) -> None:
    """Record the present state of the files on ``model``, for :func:`check_unchanged`."""
    stamps = {mapping.path: _stamp(mapping.path) for mapping in mappings}
    model.__dict__[_STAMPS_KEY] = {path: stamp for path, stamp in stamps.items() if stamp is not None}


def check_unchanged(model: nn.Module) -> None:
    """Check that the files that weights of ``model`` are read from were not written to since they were mapped.

    A path that now leads to another inode is accepted: the mapped file was replaced, and processes that map it still
    see the old content.

    Raises:
        BaseMismatch: a file was written to.
    """
    for path, before in model.__dict__.get(_STAMPS_KEY, {}).items():
        now = _stamp(path)
        if now is not None and now[0] == before[0] and now != before:
            raise BaseMismatch(
                f"{path} was changed while the model was mapped from it, so what was computed cannot be relied on: "
                "start again, and replace files by renaming others onto them"
            )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return inode, size and time of the last change; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
