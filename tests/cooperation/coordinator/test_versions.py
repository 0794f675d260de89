"""A version on the disk is whole or is not there, and the one before outlives a full disk."""

import errno
import os

import pytest
import torch

from taskedge.cooperation.coordinator import versions
from taskedge.errors import InputError


def test_state_and_tensors_come_back_bit_by_bit(tmp_path):
    tensors = {"value/x": torch.tensor([1.0, -0.0, 1e-40]), "steps/x": torch.tensor(7)}
    path = versions.commit(tmp_path, 3, {"round": 3, "loss": 0.1}, tensors)
    state, found = versions.read(path)
    assert state == {"round": 3, "loss": 0.1}
    assert found.keys() == tensors.keys()
    assert torch.equal(found["value/x"].view(torch.int32), tensors["value/x"].view(torch.int32))
    assert versions.strip_prefix("value", found).keys() == {"x"}
    assert versions.add_prefix("value", versions.strip_prefix("value", found)).keys() == {"value/x"}


def test_two_are_kept(tmp_path):
    for number in (0, 1, 2, 10):
        versions.commit(tmp_path, number, {}, {"x": torch.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["version-10.safetensors", "version-2.safetensors"]
    assert versions.latest(tmp_path).name == "version-10.safetensors"


def test_a_full_disk_leaves_the_last_version_intact(tmp_path, monkeypatch):
    versions.commit(tmp_path, 1, {"round": 1}, {"x": torch.ones(4)})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left.*after round 2: version-1.safetensors is whole"):
        versions.commit(tmp_path, 2, {"round": 2}, {"x": torch.zeros(4)})
    assert [path.name for path in tmp_path.iterdir()] == ["version-1.safetensors"]
    assert versions.read(versions.latest(tmp_path))[1]["x"].tolist() == [1.0] * 4


def test_damage_is_noticed(tmp_path):
    path = versions.commit(tmp_path, 1, {}, {"x": torch.ones(4)})
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged .*digest"):
        versions.read(path)
    path.write_bytes(content[:20])
    with pytest.raises(InputError, match="damaged"):
        versions.read(path)
