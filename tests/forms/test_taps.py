"""Gates on whole layers: against dense autograd, plain training of the layers, and the base bit for bit."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch.func import functional_call

import taskedge as te
from taskedge.backbone.layers import Linear, linears
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.recompute import recomputing
from taskedge.forms.taps import GATE_START, TapsLayer, check_whole, layer_gates, taps_layers

MAKES = [tiny.bert, tiny.gpt2, tiny.resnet]


def gated(model, **more):
    return install_taps(model, taps_support(model), **more)


def close(model, every=1):
    """Close every n-th gate."""
    for gate in list(layer_gates(model).values())[::every]:
        gate.score.data.fill_(0.05)


def with_changes(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for layer in taps_layers(model).values():
        change = layer.taps_change
        change.data.copy_(0.1 * torch.randn(change.shape, generator=generator, dtype=change.dtype))
    return model


@pytest.mark.parametrize("make", MAKES)
def test_closed_gates_leave_the_base_bit_for_bit(make):
    model, plain = with_changes(gated(make())), make()
    batch = tiny.batch(plain)
    close(model)
    expected = tiny.logits(plain, batch)
    assert torch.equal(tiny.logits(model, batch), expected)
    with torch.no_grad():
        assert torch.equal(tiny.logits(model, batch), expected)
    delta = te.extract(model)
    assert not delta.linears
    assert delta.provenance.training["closed_layers"] == list(layer_gates(model))
    fused = te.fuse(model)
    assert tiny.same_bits(tiny.state(fused), tiny.state(make()))
    assert [type(one) for one in fused.modules()] == [type(one) for one in make().modules()]


@pytest.mark.parametrize("make", MAKES)
def test_gradients_are_those_of_dense_autograd(make):
    """Open: of the weight, for the change; <of the weight, change> for every score, open or not."""
    model, plain = gated(make().double()), make().double()
    with_changes(model)
    close(model, every=3)
    gates, layers = layer_gates(model), taps_layers(model)
    for gate in gates.values():
        gate.score.data = gate.score.data.double()
    weights = {}
    for name, layer in layers.items():
        open_part = layer.taps_change if gates[name].is_open else torch.zeros_like(layer.taps_change)
        weights[f"{name}.weight"] = (plain.get_submodule(name).weight + open_part).detach().requires_grad_()
    batch = tiny.batch(model)
    if "pixel_values" in batch:
        batch = batch | {"pixel_values": batch["pixel_values"].double()}
    expected = functional_call(plain, weights, (), batch).logits
    found = tiny.logits(model, batch)
    assert float((found - expected).detach().abs().max()) <= 1e-12
    dense = dict(zip(layers, torch.autograd.grad(expected.square().sum(), list(weights.values())), strict=True))
    found.square().sum().backward()
    assert {gate.is_open for gate in gates.values()} == {True, False}
    for name, layer in layers.items():
        inner = float((dense[name] * layer.taps_change.detach()).sum())
        assert abs(float(gates[name].score.grad) - inner) <= 1e-9
        if gates[name].is_open:
            assert float((layer.taps_change.grad - dense[name]).abs().max()) <= 1e-9
        else:
            assert layer.taps_change.grad is None


@pytest.mark.parametrize("make", [tiny.bert, tiny.resnet])
def test_open_gates_train_like_the_layers_themselves(make):
    """With all gates open and no penalty, AdamW takes the very steps that it takes on the weights."""
    model, plain = gated(make().double(), trainable=[]), make().double()
    layers = taps_layers(model)
    weights = [plain.get_submodule(name).weight for name in layers]
    for mine, parameters in ((model, [layer.taps_change for layer in layers.values()]), (plain, weights)):
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        for step in range(4):
            batch = tiny.batch(mine, seed=step)
            if "pixel_values" in batch:
                batch = batch | {"pixel_values": batch["pixel_values"].double()}
            optimizer.zero_grad()
            tiny.loss(mine, batch).backward()
            optimizer.step()
    for layer, weight in zip(layers.values(), weights, strict=True):
        assert bool(layer.taps_change.detach().any())
        assert float((layer.weight - weight).detach().abs().max()) <= 1e-9


def test_a_closed_gate_opens_again_where_its_change_would_help():
    model = gated(tiny.mlp(), trainable=[])
    layer = model.first
    inputs, target = torch.randn(16, 12), torch.randn(16, 3)

    def error():
        return (model.eval()(inputs) - target).square().mean()

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layer.taps_change.requires_grad_(True)
    (direction,) = torch.autograd.grad(error(), layer.taps_change)
    layer.taps_change.data = -0.1 * direction  # down the gradient
    gate = layer.taps_gate
    gate.score.data.fill_(0.09)
    gate.score.requires_grad_(True)
    (slope,) = torch.autograd.grad(error(), gate.score)
    assert float(slope) < 0
    gate.score.data -= 0.02 * slope.sign()
    assert gate.is_open
    layer.taps_change.data = 0.1 * direction  # up the gradient: the gate stays closed
    gate.score.data.fill_(0.09)
    (slope,) = torch.autograd.grad(error(), gate.score)
    assert float(slope) > 0


@pytest.mark.parametrize("make", MAKES)
def test_the_delta_holds_the_open_layers_only_and_gives_the_model_that_trained(make, tmp_path):
    model = gated(make())
    tiny.train(model)
    for gate in layer_gates(model).values():
        gate.score.data.fill_(GATE_START)
    close(model, every=2)
    batch = tiny.batch(model, seed=5)
    expected = tiny.logits(model.eval(), batch)
    delta = te.extract(model)
    is_open = [name for name, gate in layer_gates(model).items() if gate.is_open]
    assert list(delta.linears) == is_open
    assert all(len(linear) == linear.shape[0] * linear.shape[1] for linear in delta.linears.values())
    read = te.load(te.save(delta, tmp_path / "task.safetensors"))
    base = make()
    te.apply(base, read)
    assert torch.equal(tiny.logits(base, batch), expected)
    te.revert(base)
    assert tiny.same_bits(tiny.state(base), tiny.state(make()))
    assert torch.equal(tiny.logits(te.fuse(model), batch), expected)
    numbers = sum(map(len, delta.linears.values())) + delta.num_full_parameters
    assert 4 * numbers < (tmp_path / "task.safetensors").stat().st_size < 4 * numbers + 4000


def test_a_delta_of_layers_refuses_another_base():
    model = tiny.train(gated(tiny.bert()))
    delta, other = te.extract(model), tiny.bert()
    linears(other)[next(iter(delta.linears))].module.weight.data[0, 0] += 1
    with pytest.raises(te.errors.BaseMismatch, match="other values"):
        te.apply(other, delta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_base_trains_changes_in_fp32_and_rounds_once(dtype):
    model = gated(tiny.bert().to(dtype))
    tiny.train(model, lr=1e-3)
    layer = next(iter(taps_layers(model).values()))
    assert layer.taps_change.dtype == torch.float32
    batch = tiny.batch(model)
    base = tiny.bert().to(dtype)
    te.apply(base, te.extract(model))
    assert torch.equal(tiny.logits(base, batch), tiny.logits(model.eval(), batch))


@pytest.mark.parametrize("mode", ["blocks", "inputs"])
def test_recomputation_changes_no_gradient(mode):
    gradients = []
    for each in ("none", mode):
        model = with_changes(gated(tiny.bert()))
        with recomputing(model, each):
            tiny.loss(model, tiny.batch(model)).backward()
        gradients.append([parameter.grad for parameter in tiny.trained(model)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_copy_of_the_model_is_independent():
    model = with_changes(gated(tiny.bert()))
    batch = tiny.batch(model)
    other = copy.deepcopy(model)
    close(other)
    assert torch.equal(tiny.logits(other, batch), tiny.logits(tiny.bert(), batch))
    assert not torch.equal(tiny.logits(model, batch), tiny.logits(tiny.bert(), batch))


def test_a_weight_that_is_read_only_cannot_change_whole():
    model = tiny.mlp()
    set_weight_storage(model, "int8", lambda _: None)
    layer = linears(model)["first"]
    assert isinstance(layer, Linear)
    with pytest.raises(InputError, match="read-only"):
        check_whole(layer)
    assert not isinstance(model.first, TapsLayer)
