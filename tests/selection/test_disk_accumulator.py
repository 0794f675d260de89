"""Sums on the disk have the bits of sums in memory, and no file is left behind."""

from __future__ import annotations

import errno
import gc
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import bits

from taskedge.errors import InputError
from taskedge.selection import disk_accumulator as module
from taskedge.selection.disk_accumulator import DiskAccumulator


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    additions=st.lists(st.integers(0, 2), max_size=6),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_sums_have_the_bits_of_sums_in_memory(shapes, additions, chunk, seed):
    draw = torch.Generator().manual_seed(seed)
    kept: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        accumulator = DiskAccumulator({str(place): shape for place, shape in enumerate(shapes)})
        for place in additions:
            place %= len(shapes)
            matrix = torch.randn(shapes[place], generator=draw)
            kept[str(place)] = kept[str(place)] + matrix if str(place) in kept else matrix
            accumulator.add(str(place), matrix)
        for place, shape in enumerate(shapes):
            expected = kept.get(str(place), torch.zeros(shape))
            assert torch.equal(bits(accumulator.read(str(place))), bits(expected))
    accumulator.close()


def test_squares_transposed_views_and_other_dtypes():
    matrix = torch.randn(5, 7)
    accumulator = DiskAccumulator({"a": (7, 5), "b": (5, 7)})
    accumulator.add("a", matrix.t(), squared=True)
    accumulator.add("a", matrix.t(), squared=True)
    accumulator.add("b", matrix.to(torch.bfloat16))
    assert torch.equal(accumulator.read("a"), matrix.t().square() * 2)
    assert torch.equal(accumulator.read("b"), matrix.to(torch.bfloat16).float())


def test_a_negative_zero_stays_one():
    accumulator = DiskAccumulator({"a": (1, 1)})
    accumulator.add("a", torch.tensor([[-0.0]]))
    assert torch.signbit(accumulator.read("a")).item()


def test_reads_return_copies_and_added_matrices_are_not_changed():
    accumulator, matrix = DiskAccumulator({"a": (2, 2)}), torch.ones(2, 2)
    accumulator.add("a", matrix, squared=True)
    accumulator.add("a", matrix)
    accumulator.read("a").zero_()
    assert torch.equal(accumulator.read("a"), torch.full((2, 2), 2.0))
    assert torch.equal(matrix, torch.ones(2, 2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder that is the temporary folder of the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_nothing_is_left_behind(folder):
    accumulator = DiskAccumulator({"a": (2, 2)})
    accumulator.add("a", torch.ones(2, 2))
    file = weakref.ref(accumulator._file)
    del accumulator
    gc.collect()
    assert file() is None
    assert not list(folder.iterdir())
    accumulator = DiskAccumulator({"a": (2, 2)})
    accumulator.close()
    accumulator.close()
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"none: cannot hold .* 24 bytes \(No such file .* another folder in TMPDIR"):
        DiskAccumulator({"a": (2, 3)})


class Full:
    """A file on a full disk: a few bytes fit."""

    def __init__(self, room: int) -> None:
        self.room = room

    def seek(self, place: int) -> None: ...

    def write(self, memory: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = min(self.room, len(memory))
        self.room -= count
        return count


def test_a_full_disk(folder):
    accumulator = DiskAccumulator({"a": (4, 4)})
    accumulator._file = Full(20)
    with pytest.raises(InputError, match=r"64 bytes \(No space left on device\): make room there"):
        accumulator.add("a", torch.ones(4, 4))


def test_a_file_that_was_cut_short(folder):
    accumulator = DiskAccumulator({"a": (4, 4)})
    accumulator.add("a", torch.ones(4, 4))
    accumulator._file.truncate(10)
    with pytest.raises(InputError, match="ends at byte 10"):
        accumulator.read("a")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_system_says_that_the_disk_is_full():
    accumulator = DiskAccumulator({"a": (4, 4)})
    with Path("/dev/full").open("r+b", buffering=0) as full:
        accumulator._file = full
        with pytest.raises(InputError, match="No space left on device"):
            accumulator.add("a", torch.ones(4, 4))
