"""A support survives the disk, and nothing else passes for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taskedge.errors import InputError
from taskedge.selection.support import LinearSupport, Support
from taskedge.selection.support_file import load_support, save_support


@pytest.fixture
def support() -> Support:
    return Support(
        linears={
            "a": LinearSupport((2, 3), torch.tensor([0, 1]), torch.tensor([2, 0]), "a", torch.tensor([1.0, 2.0, 3.0])),
            "b": LinearSupport((4, 3), torch.tensor([3]), torch.tensor([1]), "a"),
        },
        model_parameters=100,
        rule="random",
        allocation="global",
        budget="3%",
        settings={"seed": 7},
    )


def test_round_trip(support: Support, tmp_path: Path) -> None:
    save_support(support, tmp_path / "support")
    read = load_support(tmp_path / "support")
    assert str(read) == str(support)
    assert (read.rule, read.allocation, read.budget, read.settings) == ("random", "global", "3%", {"seed": 7})
    for name, linear in support.linears.items():
        other = read.linears[name]
        assert other.shape == linear.shape
        assert other.reads == linear.reads
        assert torch.equal(other.rows, linear.rows)
        assert torch.equal(other.columns, linear.columns)
    assert torch.equal(read.linears["a"].input_rms, torch.tensor([1.0, 2.0, 3.0]))
    assert read.linears["b"].input_rms is None


def test_low_rank_modules_and_whole_vectors_go_in_too(support: Support, tmp_path: Path) -> None:
    more = replace(support, low_rank={"c": 8}, low_rank_parameters=48, whole=("n.weight", "n.bias"), whole_parameters=6)
    save_support(more, tmp_path / "support")
    read = load_support(tmp_path / "support")
    assert (read.low_rank, read.whole) == ({"c": 8}, ("n.weight", "n.bias"))
    assert (read.parameters, read.share) == (57, 0.57)
    assert read.settings == more.settings


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_broken_file_is_refused(support: Support, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "support"
    save_support(support, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole support"):
        load_support(path)


def test_entries_outside_the_weight_are_refused(support: Support, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    path = tmp_path / "support"
    save_support(support, path)
    content = path.read_bytes()
    tensors = load(content)
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    import json

    metadata = json.loads(header)["__metadata__"]
    path.write_bytes(save(tensors | {"flat/a": torch.tensor([0, 6])}, metadata))
    with pytest.raises(InputError, match="outside"):
        load_support(path)
