"""Sums of matrices in a temporary file instead of memory, for rules that add up gradients over batches.

A few rows are read and written at a time, without a memory map, so that the file never counts as resident memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskedge.errors import InputError

_CHUNK = 2**14
"""Numbers in memory at a time, 64 KiB of fp32; a longer row is held completely."""
_FLOAT_BYTES = 4


class DiskAccumulator:
    """Running sums in float32, one matrix of a fixed shape for each key, initially 0.

    The file is in the folder of Python's ``tempfile``: ``TMPDIR``, else ``/tmp``. It has no name, so the system removes
    it when it is closed, when the accumulator is garbage collected, and when the process dies for any reason.

    Args:
        shapes: (rows, columns) by key; the file grows to 4 bytes for each number in them.

    Raises:
        InputError: the folder is not writable; in ``add`` and ``read``: it is full or fails.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self._shapes = dict(shapes)
        self._starts: dict[str, int] = {}
        end = 0
        for key, (rows, columns) in self._shapes.items():
            self._starts[key] = end
            end += rows * columns * _FLOAT_BYTES
        self._bytes = end
        self._added: set[str] = set()
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the accumulator
        except OSError as error:
            raise self._failed(error) from None

    def add(self, key: str, matrix: Tensor, *, squared: bool = False) -> None:
        """Add a matrix, or its squares, to the sum of a key.

        Sums are computed in fp32 in the order of the calls. The first call stores the matrix, because ``0 + x`` loses
        the sign of -0.

        Args:
            key: one of the keys of ``shapes``.
            matrix: [rows, columns] of any float dtype, on any device.
            squared: whether to add the squares.
        """
        for start, rows in self._chunks(key):
            chunk = matrix[rows].to(device="cpu", dtype=torch.float32).contiguous()
            if squared:
                chunk = chunk.square()
            if key in self._added:
                chunk = self._read(start, torch.empty_like(chunk)).add_(chunk)
            self._write(start, chunk)
        self._added.add(key)

    def read(self, key: str) -> Tensor:
        """Return a new tensor with the sum of a key, float32 [rows, columns] on the CPU."""
        if key not in self._added:
            return torch.zeros(self._shapes[key])
        return self._read(self._starts[key], torch.empty(self._shapes[key]))

    def close(self) -> None:
        """Remove the file; sums can no longer be read."""
        self._file.close()

    def _chunks(self, key: str) -> Iterator[tuple[int, slice]]:
        """Yield (offset in the file, rows) for a few rows at a time."""
        rows, columns = self._shapes[key]
        step = max(1, _CHUNK // columns)
        for first in range(0, rows, step):
            yield self._starts[key] + first * columns * _FLOAT_BYTES, slice(first, min(first + step, rows))

    def _read(self, start: int, into: Tensor) -> Tensor:
        memory = into.numpy().data.cast("B")
        try:
            self._file.seek(start)
            while memory:
                count = self._file.readinto(memory)
                if not count:
                    raise OSError(f"the file ends at byte {self._file.tell()}")
                memory = memory[count:]
        except OSError as error:
            raise self._failed(error) from None
        return into

    def _write(self, start: int, chunk: Tensor) -> None:
        memory = chunk.numpy().data.cast("B")
        try:
            self._file.seek(start)
            while memory:
                memory = memory[self._file.write(memory) :]
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"{tempfile.gettempdir()}: cannot hold the sums of gradients, {self._bytes:,} bytes "
            f"({error.strerror or error}): make room there, or name another folder in TMPDIR"
        )
