"""Tensors in mapped files are found, and a file that is written to is noticed."""

import os
import sys

import pytest
import torch
from resident import resident
from safetensors.torch import save_file
from torch import nn

from taskedge.backbone.storage import memory_map
from taskedge.errors import BaseMismatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some model.safetensors"
    torch.arange(2**18, dtype=torch.int32).numpy().tofile(path)
    return path


def from_file(path):
    return torch.from_file(str(path), shared=False, size=2**18, dtype=torch.int32)


def test_tensors_in_a_mapped_file(file):
    there, here = from_file(file), torch.zeros(5)
    (mapping, tensors), *others = memory_map.mapped_tensors([here, there, there[7:9], there.clone()]).items()
    assert not others
    assert (mapping.path, mapping.inode) == (file, file.stat().st_ino)
    assert [tensor.data_ptr() for tensor in tensors] == [there.data_ptr(), there[7:9].data_ptr()]
    assert mapping.contains(there)
    assert not mapping.contains(here)


def test_a_system_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_map, "MAPS", tmp_path / "none")
    assert memory_map.file_mappings() == []


def test_pages_are_released_and_read_again(file):
    there = from_file(file)
    assert int(there.sum()) == 2**17 * (2**18 - 1)
    assert resident(file) >= 1024
    memory_map.release_pages(there[10:-10])
    assert resident(file) <= 8  # the two pages at the ends, of which something else may be in use
    memory_map.release_pages(there[:3])  # less than a page
    assert torch.equal(there, torch.arange(2**18, dtype=torch.int32))


def test_a_file_that_was_written_to_is_noticed(file, tmp_path):
    model, there = nn.Linear(2, 2), from_file(file)
    memory_map.check_unchanged(model)  # no file was recorded
    memory_map.remember_files(model, memory_map.mapped_tensors([there]))
    memory_map.check_unchanged(model)
    other = tmp_path / "other"
    save_file({"a": torch.zeros(3)}, other)
    original = file.rename(tmp_path / "moved")
    memory_map.check_unchanged(model)  # gone, but still there for us
    other.rename(file)
    memory_map.check_unchanged(model)  # another has taken its place
    original.replace(file)
    with file.open("r+b") as opened:
        opened.write(b"\1")
    os.utime(file, (1, 1))
    with pytest.raises(BaseMismatch, match=r"some model.safetensors was changed while the model was mapped from it"):
        memory_map.check_unchanged(model)
