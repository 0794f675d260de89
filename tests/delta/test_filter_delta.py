"""The filter of a product in a delta: its file, what a reader refuses, and what it cannot do."""

from __future__ import annotations

import pytest
import torch

from taskedge.delta.delta import Delta, LowRankDelta
from taskedge.delta.file import load, save, section_bytes
from taskedge.delta.filter_delta import FilterDelta, refuse_filters
from taskedge.delta.interop.lora_rank import lora_ranks
from taskedge.errors import DeltaError, InputError


def product(out=4, inputs=6):
    return LowRankDelta(torch.ones(2, inputs), torch.ones(out, 2), 1.0, "float32", "00" * 12)


def cosine(out=4, rank=3):
    return FilterDelta("cosine", {"c": torch.rand(rank, out), "d": torch.rand(out, rank), "v": torch.rand(out)})


def gate(out=4, rank=3):
    shapes = {"c": (rank, out), "d": (out, rank), "w1": (rank, out), "w2": (out, rank)}
    return FilterDelta("gate", {name: torch.rand(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("make", [cosine, gate])
def test_a_file_gives_the_same_tensors_back(make, tmp_path):
    one = make()
    delta = Delta({}, low_rank={"first": product()}, filters={"first": one})
    assert lora_ranks(delta) == {}
    assert delta.num_low_rank_parameters == 2 * (4 + 6) + one.num_parameters
    path = save(delta, tmp_path / "task.safetensors")
    read = load(path).filters["first"]
    assert (read.kind, read.rank) == (one.kind, 3)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in one.tensors.items())
    assert section_bytes(path)["filter/first/d"] == 4 * 12
    half = load(save(delta, tmp_path / "half.safetensors", values="bf16")).filters["first"]
    assert all(torch.equal(half.tensors[name], tensor.bfloat16().float()) for name, tensor in one.tensors.items())


def test_a_delta_without_filters_has_the_bytes_of_before(tmp_path):
    content = save(Delta({}, low_rank={"first": product()}), tmp_path / "task.safetensors").read_bytes()
    assert b'"form":"sparse+low_rank"' in content.replace(b'\\"', b'"').replace(b": ", b":")
    assert b"filter" not in content


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (FilterDelta("cosine", {"c": torch.rand(3, 4), "d": torch.rand(4, 3)}), "'cosine' with the tensors c, d"),
        (cosine(out=5), "of its filter is"),
        (FilterDelta("fast", cosine().tensors), "a filter 'fast'"),
        (FilterDelta("cosine", {**cosine().tensors, "v": torch.full((4,), torch.inf)}), "not a finite float32"),
    ],
)
def test_a_filter_that_contradicts_itself_is_refused(one, message):
    with pytest.raises(DeltaError, match=message):
        Delta({}, low_rank={"first": product()}, filters={"first": one})


def test_a_filter_without_its_product_is_refused():
    with pytest.raises(DeltaError, match="no low-rank product"):
        Delta({}, low_rank={"first": product()}, filters={"second": cosine()})


def test_refusals_name_the_reason_and_the_next_step():
    delta = Delta({}, low_rank={"first": product()}, filters={"first": cosine()})
    with pytest.raises(InputError, match=r"a merge is not possible: 1 linears .* cannot be fused .*--form lora"):
        refuse_filters(delta, "a merge")
    refuse_filters(Delta({}), "a merge")
