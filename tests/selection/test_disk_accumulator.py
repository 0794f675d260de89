"""Sums on the disk are those that memory would hold, to the last bit, and nothing stays behind."""

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
from taskedge.selection.disk_accumulator import Spill


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
        spill = Spill({str(place): shape for place, shape in enumerate(shapes)})
        for place in additions:
            place %= len(shapes)
            matrix = torch.randn(shapes[place], generator=draw)
            kept[str(place)] = kept[str(place)] + matrix if str(place) in kept else matrix
            spill.add(str(place), matrix)
        for place, shape in enumerate(shapes):
            expected = kept.get(str(place), torch.zeros(shape))
            assert torch.equal(bits(spill.read(str(place))), bits(expected))
    spill.close()


def test_squares_transposed_views_and_other_dtypes():
    matrix = torch.randn(5, 7)
    spill = Spill({"a": (7, 5), "b": (5, 7)})
    spill.add("a", matrix.t(), squared=True)
    spill.add("a", matrix.t(), squared=True)
    spill.add("b", matrix.to(torch.bfloat16))
    assert torch.equal(spill.read("a"), matrix.t().square() * 2)
    assert torch.equal(spill.read("b"), matrix.to(torch.bfloat16).float())


def test_a_negative_zero_stays_one():
    spill = Spill({"a": (1, 1)})
    spill.add("a", torch.tensor([[-0.0]]))
    assert torch.signbit(spill.read("a")).item()


def test_what_is_read_is_the_readers_and_what_is_added_is_not_changed():
    spill, matrix = Spill({"a": (2, 2)}), torch.ones(2, 2)
    spill.add("a", matrix, squared=True)
    spill.add("a", matrix)
    spill.read("a").zero_()
    assert torch.equal(spill.read("a"), torch.full((2, 2), 2.0))
    assert torch.equal(matrix, torch.ones(2, 2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty temporary folder of the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_is_left_behind(folder):
    spill = Spill({"a": (2, 2)})
    spill.add("a", torch.ones(2, 2))
    file = weakref.ref(spill._file)
    del spill
    gc.collect()
    assert file() is None
    assert not list(folder.iterdir())
    spill = Spill({"a": (2, 2)})
    spill.close()
    spill.close()
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"none: cannot hold .* 24 bytes \(No such file .* another folder in TMPDIR"):
        Spill({"a": (2, 3)})


class Full:
    """A file on a full disk: a few bytes fit, and then none."""

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
    spill = Spill({"a": (4, 4)})
    spill._file = Full(20)
    with pytest.raises(InputError, match=r"64 bytes \(No space left on device\): make room there"):
        spill.add("a", torch.ones(4, 4))


def test_a_file_that_was_cut_short(folder):
    spill = Spill({"a": (4, 4)})
    spill.add("a", torch.ones(4, 4))
    spill._file.truncate(10)
    with pytest.raises(InputError, match="ends at byte 10"):
        spill.read("a")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_the_system_says_that_the_disk_is_full():
    spill = Spill({"a": (4, 4)})
    with Path("/dev/full").open("r+b", buffering=0) as full:
        spill._file = full
        with pytest.raises(InputError, match="No space left on device"):
            spill.add("a", torch.ones(4, 4))
