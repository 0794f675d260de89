"""Training steps down to a depth."""

from __future__ import annotations

import pytest
import torch
from depth_models import sparse, tiny

from taskedge.backbone.cost_model import dummy_inputs
from taskedge.errors import InputError
from taskedge.profiling.training_steps import DepthTraining


def test_only_the_blocks_down_to_the_depth_train() -> None:
    model, inputs = sparse()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "offsets" in name}
    training = DepthTraining(model, "x")
    with training.training_to(2) as step:
        step(inputs)
    changed = {
        name.split(".")[2]
        for name, p in model.named_parameters()
        if name in before and not torch.equal(p, before[name])
    }
    assert changed == {"3", "2"}
    assert not any(p.requires_grad for p in model.parameters())


def test_a_plain_model_trains_too() -> None:
    model = tiny(2)
    training = DepthTraining(model, "all weights")
    with training.training_to(1) as step:
        step(dummy_inputs(model, 1, 8))
        assert not model.encoder.layer[0].attention.self.query.weight.requires_grad
        assert model.encoder.layer[1].attention.self.query.weight.requires_grad


def test_a_forward_pass_keeps_nothing() -> None:
    model, inputs = sparse()
    training = DepthTraining(model, "x")
    with torch.autograd.graph.saved_tensors_hooks(lambda _: pytest.fail("a tensor was kept"), lambda kept: kept):
        training.forward(inputs)
    assert (training.device.type, training.dtype) == ("cpu", torch.float32)


def test_optimizer_state_lasts_until_it_is_cleared() -> None:
    model, inputs = sparse()
    training = DepthTraining(model, "x")
    with training.training_to(1) as step:
        step(inputs)
    first = training._optimizers[1]
    with training.training_to(1) as step:
        step(inputs)
    assert training._optimizers[1] is first
    training.clear_optimizers()
    assert not training._optimizers


def test_models_without_depths() -> None:
    with pytest.raises(InputError, match="no repeated blocks"):
        DepthTraining(torch.nn.Linear(2, 2), "x")
    with pytest.raises(InputError, match=r"nothing is trainable in the blocks at depth \[2, 1\]"):
        DepthTraining(tiny(2).requires_grad_(False), "x")
