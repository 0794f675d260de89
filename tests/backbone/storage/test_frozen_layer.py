"""A frozen linear computes, as int8 or as stored, what a plain one with that weight does, and saves no dense weight."""

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layers import LinearAdapter
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer, can_freeze, freeze_layer
from taskedge.errors import InputError

LAYERS = {
    "linear": lambda: nn.Linear(5, 7),
    "no bias": lambda: nn.Linear(5, 7, bias=False),
    "conv1d": lambda: Conv1D(7, 5),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
codings = pytest.mark.parametrize("coding", ["int8", "int4", ""], ids=["int8", "int4", "as stored"])


def made(make, seed=0):
    torch.manual_seed(seed)
    layer = make().requires_grad_(False)
    nn.init.normal_(layer.weight)
    return layer


def twins(make, coding):
    """Return a frozen layer, and a plain one with the weight that it computes with."""
    plain = made(make)
    frozen = freeze_layer("x", copy.deepcopy(plain), coding)
    plain.weight.copy_(frozen.weight)
    return frozen, plain


@codings
@layers
def test_outputs_and_gradients_are_those_of_the_plain_layer(make, coding):
    frozen, plain = twins(make, coding)
    x = torch.randn(2, 3, 5)
    gradients = []
    for layer in (frozen, plain):
        leaf = x.clone().requires_grad_()
        output = layer(leaf)
        output.square().sum().backward()
        gradients.append((output.detach(), leaf.grad))
    reference = x.double() @ LinearAdapter.match(plain).matrix(plain.weight).double().t()
    reference += 0 if plain.bias is None else plain.bias.double()
    torch.testing.assert_close(gradients[0][0].double(), reference, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs) or make is LAYERS["conv1d"]
        torch.testing.assert_close(ours, theirs)


@codings
@layers
def test_gradients_in_double(make, coding):
    frozen = freeze_layer("x", made(make), coding).double()
    assert frozen.weight.dtype == torch.float64
    frozen.overlay((torch.tensor([1, 2]), torch.tensor([0, 3])), torch.tensor([0.5, -2.0]))
    if frozen.bias is not None:
        frozen.bias.requires_grad_()
    for shape in ((2, 3, 5), (5,)):  # a lone vector is one token
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        trained = [x] if frozen.bias is None else [x, frozen.bias]
        assert torch.autograd.gradcheck(lambda x, *_: frozen(x), trained)


@codings
@layers
def test_later_overlays_replace_earlier_ones(make, coding):
    frozen, plain = twins(make, coding)
    before = frozen.weight.clone()
    first = torch.tensor([0, 3, 4]), torch.tensor([1, 0, 2])
    frozen.overlay(first, torch.tensor([1.5, 2.5, 3.5]))
    frozen.overlay(tuple(part[1:] for part in first), torch.tensor([-2.0, -3.0]))
    frozen.overlay((torch.tensor([1]), torch.tensor([4])), torch.tensor([9.0], dtype=torch.float64))
    plain.weight[first] = torch.tensor([1.5, -2.0, -3.0])
    plain.weight[1, 4] = 9.0
    assert torch.equal(frozen.weight, plain.weight)
    if not coding:
        assert torch.equal(frozen._parameters["weight"], before)  # what it holds was not touched


@codings
def test_a_backward_pass_uses_the_weight_of_its_forward_pass(coding):
    frozen = freeze_layer("x", made(LAYERS["linear"]), coding)
    index = torch.tensor([2]), torch.tensor([3])
    frozen.overlay(index, torch.tensor([5.0]))
    weight, x = frozen.weight.clone(), torch.randn(4, 5, requires_grad=True)
    output = frozen(x)
    frozen.overlay(index, torch.tensor([-5.0]))
    output.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(4, 7) @ weight)


@codings
def test_no_tensor_is_saved_for_the_backward_pass(coding):
    frozen = freeze_layer("x", made(LAYERS["linear"]), coding)
    frozen.overlay((torch.tensor([2]), torch.tensor([3])), torch.tensor([5.0]))
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        frozen(torch.randn(4, 5, requires_grad=True))
    assert not kept


@codings
def test_dtypes_and_copies(coding):
    frozen = freeze_layer("x", made(LAYERS["linear"]), coding)
    scale = frozen.scale
    low = copy.deepcopy(frozen).bfloat16()
    assert low(torch.randn(3, 5).bfloat16()).dtype == torch.bfloat16
    assert low.weight.dtype == torch.bfloat16
    if coding:
        assert torch.equal(low.scale, scale)
        assert torch.equal(low.weight, frozen.weight.bfloat16())
    x = torch.randn(3, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = frozen(x)
    output.float().sum().backward()
    assert (output.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(x.grad, torch.ones(3, 7) @ frozen.weight, rtol=0.02, atol=0.02)
    other = copy.deepcopy(frozen)
    other.overlay((torch.tensor([0]), torch.tensor([0])), torch.tensor([7.0]))
    assert frozen.weight[0, 0] != 7.0


@codings
def test_the_state_dict_is_that_of_a_plain_layer_and_is_not_loaded(coding):
    frozen, plain = twins(LAYERS["linear"], coding)
    index = torch.tensor([1]), torch.tensor([4])
    frozen.overlay(index, torch.tensor([9.0]))
    plain.weight[index] = 9.0
    assert tiny.same_bits(dict(frozen.state_dict()), dict(plain.state_dict()))
    with pytest.raises(InputError, match="read-only: load the state before"):
        frozen.load_state_dict(plain.state_dict())


def test_what_can_freeze():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    assert can_freeze(Renamed(2, 2))
    assert can_freeze(Conv1D(2, 2))
    for module in (Scaled(2, 2), nn.Conv2d(1, 1, 1), nn.Embedding(2, 2), nn.LayerNorm(2)):
        assert not can_freeze(module)
    frozen = freeze_layer("x", nn.Linear(2, 2), "int8")
    assert not can_freeze(frozen)


def test_a_weight_that_is_not_finite():
    layer = made(LAYERS["linear"])
    layer.weight[2, 2] = torch.nan
    with pytest.raises(InputError, match=r"'some.layer' holds weights that are not finite"):
        freeze_layer("some.layer", layer, "int8")


@pytest.mark.slow
@codings
def test_sparse_training_on_it_equals_that_on_the_plain_weight(coding):
    """Every step and the learned values have the same bits."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).requires_grad_(False)
    frozen = copy.deepcopy(plain)
    for name in ("0", "2"):
        layer = freeze_layer(name, frozen.get_submodule(name), coding)
        plain.get_submodule(name).weight.copy_(layer.weight)
    support = te.select(plain, per_neuron=2, rule="random", linears=["*"])
    learned = []
    for model in (plain, frozen):
        te.install(model, support, trainable=[])
        tiny_loop(model)
        learned.append(te.extract(model))
        assert isinstance(te.fuse(model)[0], nn.Linear)
    assert isinstance(frozen[0], FrozenWeightLayer)
    for name, linear in learned[0].linears.items():
        assert torch.equal(linear.values, learned[1].linears[name].values)
        assert torch.equal(plain.get_submodule(name).weight, frozen.get_submodule(name).weight)


def tiny_loop(model):
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=0.1)
    for seed in range(3):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
