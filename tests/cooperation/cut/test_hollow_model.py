"""A model without blocks: its names and shapes are the whole model's, and its memory is not."""

from __future__ import annotations

import cut_runs
import pytest
import tiny_task
import torch

from taskedge.backbone.loading import load_base
from taskedge.cooperation.cut.base_parts import write_parts
from taskedge.cooperation.cut.hollow_model import HollowModel
from taskedge.errors import InputError

STACKS = {"bert": "encoder.layer", "gpt2": "h"}


@pytest.fixture(params=sorted(STACKS))
def both(request, tmp_path):
    base = getattr(tiny_task, request.param)(tmp_path / "base")
    write_parts(str(base), STACKS[request.param], 2, tmp_path / "parts")
    torch.manual_seed(0)
    whole = load_base("text-classification", base, ["a", "b"]).model
    torch.manual_seed(0)
    own = load_base("text-classification", tmp_path / "parts", ["a", "b"]).model
    return whole, HollowModel(own, torch.float32, STACKS[request.param])


def test_names_shapes_and_the_new_head_are_those_of_the_whole_model(both):
    whole, hollow = both
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    assert {name: parameter.shape for name, parameter in hollow.model.named_parameters()} == shapes
    assert hollow.num_parameters == sum(shape.numel() for shape in shapes.values())
    outside = {name: p for name, p in whole.named_parameters() if hollow.prefix + STACKS["bert"] not in name}
    own = dict(hollow.model.named_parameters())
    assert all(torch.equal(own[name], p) for name, p in outside.items() if f"{hollow.prefix}h." not in name)


def test_the_device_holds_no_block(both):
    _, hollow = both
    inside = [p for name, p in hollow.model.named_parameters() if name.startswith(hollow.prefix) and ".0." in name]
    assert inside
    assert {p.untyped_storage().nbytes() for p in inside} == {4}


def test_the_cut_computes_the_blocks(both):
    """With the whole model's blocks behind the cut, the outputs are the whole model's."""
    whole, hollow = both
    base = cut_runs.CloudBase(whole.base_model, "whole")
    hollow.returns_tuple = False
    from taskedge.cooperation.cut.cloud_base import Pass

    def run(hidden, mask):
        cut = Pass(hidden, mask)
        states = base.forward(cut, trains=False)
        hollow.returns_tuple = cut.returns_tuple
        return states

    hollow.run = run
    batch = {
        "input_ids": torch.tensor([[2, 5, 7, 3], [2, 6, 3, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }
    whole.eval()
    hollow.model.eval().requires_grad_(False)
    expected = whole(**batch).logits
    assert torch.allclose(hollow.model(**batch).logits, expected, atol=1e-6)


def test_another_base_is_refused(tmp_path):
    model = load_base("text-classification", tiny_task.bert(tmp_path / "base"), ["a", "b"]).model
    with pytest.raises(InputError, match="not loaded from the files of a cut"):
        HollowModel(model, torch.float32, "encoder.layer")
