"""A held linear: int8 or as it is, it computes what a plain one with that weight does, and keeps no weight for it."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layer_adapters import Features
from taskedge.backbone.storage.frozen_layer import (
    LEVELS,
    HeldLayer,
    can_be_held,
    dequantised,
    from_base,
    plain_dtype,
    quantised,
    rounded_to_int8,
)
from taskedge.errors import InputError

LAYERS = {
    "linear": lambda: nn.Linear(5, 7),
    "no bias": lambda: nn.Linear(5, 7, bias=False),
    "conv1d": lambda: Conv1D(7, 5),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
ways = pytest.mark.parametrize("int8", [True, False], ids=["int8", "as it is"])


def made(make, seed=0):
    torch.manual_seed(seed)
    layer = make().requires_grad_(False)
    nn.init.normal_(layer.weight)
    return layer


def twins(make, int8):
    """A held layer, and a plain one with the weight that it stands for."""
    plain = made(make)
    held = from_base("it", copy.deepcopy(plain), int8=int8)
    plain.weight.copy_(held.weight)
    return held, plain


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([1e-38, 1e-3, 1.0, 1e30]),
    st.integers(0, 2**16),
)
def test_codes_are_the_nearest_of_the_even_steps(out, inputs, transposed, size, seed):
    kind = Features(transposed)
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0  # a neuron without weights
    codes, scale = quantised(kind.matrix(weight), kind)
    assert codes.dtype == torch.int8
    codes, found = kind.matrix(codes), kind.matrix(dequantised(codes, scale, torch.float32))
    assert not found[0].any()
    assert found.isfinite().all()
    if size < 1e-30:  # smaller steps than fp32 has
        return
    exact = weight.double()
    for row in range(1, out):
        step = exact[row].abs().max() / LEVELS
        nearest = (exact[row] / step).round()
        off = (codes[row] - nearest).abs()  # fp32 may take the other one of two that are equally near
        assert off.max() <= 1
        assert ((off == 0) | ((exact[row] / step - nearest).abs() > 0.4999)).all()
        assert codes[row].abs().max() == LEVELS
        assert ((found[row] - exact[row]).abs() <= 0.5001 * step).all()


@ways
@layers
def test_it_computes_what_the_plain_layer_does(make, int8):
    held, plain = twins(make, int8)
    x = torch.randn(2, 3, 5)
    gradients = []
    for layer in (held, plain):
        given = x.clone().requires_grad_()
        output = layer(given)
        output.square().sum().backward()
        gradients.append((output.detach(), given.grad))
    reference = x.double() @ Features.of(plain).matrix(plain.weight).double().t()
    reference += 0 if plain.bias is None else plain.bias.double()
    torch.testing.assert_close(gradients[0][0].double(), reference, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs) or make is LAYERS["conv1d"]
        torch.testing.assert_close(ours, theirs)


@ways
@layers
def test_in_double_its_gradients_are_right(make, int8):
    held = from_base("it", made(make), int8=int8).double()
    assert held.weight.dtype == torch.float64
    held.lay_over((torch.tensor([1, 2]), torch.tensor([0, 3])), torch.tensor([0.5, -2.0]))
    if held.bias is not None:
        held.bias.requires_grad_()
    for shape in ((2, 3, 5), (5,)):  # a lone vector is one token
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        trained = [x] if held.bias is None else [x, held.bias]
        assert torch.autograd.gradcheck(lambda x, *_: held(x), trained)


@ways
@layers
def test_what_lies_over_it(make, int8):
    held, plain = twins(make, int8)
    before = held.weight.clone()
    first = torch.tensor([0, 3, 4]), torch.tensor([1, 0, 2])
    held.lay_over(first, torch.tensor([1.5, 2.5, 3.5]))
    held.lay_over(tuple(index[1:] for index in first), torch.tensor([-2.0, -3.0]))
    held.lay_over((torch.tensor([1]), torch.tensor([4])), torch.tensor([9.0], dtype=torch.float64))
    plain.weight[first] = torch.tensor([1.5, -2.0, -3.0])
    plain.weight[1, 4] = 9.0
    assert torch.equal(held.weight, plain.weight)
    if not int8:
        assert torch.equal(held._parameters["weight"], before)  # what it holds was not touched


@ways
def test_a_pass_goes_back_with_the_weight_it_came_with(int8):
    held = from_base("it", made(LAYERS["linear"]), int8=int8)
    place = torch.tensor([2]), torch.tensor([3])
    held.lay_over(place, torch.tensor([5.0]))
    weight, x = held.weight.clone(), torch.randn(4, 5, requires_grad=True)
    output = held(x)
    held.lay_over(place, torch.tensor([-5.0]))
    output.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(4, 7) @ weight)


@ways
def test_nothing_is_kept_for_the_way_back(int8):
    held = from_base("it", made(LAYERS["linear"]), int8=int8)
    held.lay_over((torch.tensor([2]), torch.tensor([3])), torch.tensor([5.0]))
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        held(torch.randn(4, 5, requires_grad=True))
    assert not kept


@ways
def test_dtypes_and_copies(int8):
    held = from_base("it", made(LAYERS["linear"]), int8=int8)
    scale = held.scale
    low = copy.deepcopy(held).bfloat16()
    assert low(torch.randn(3, 5).bfloat16()).dtype == torch.bfloat16
    assert low.weight.dtype == torch.bfloat16
    if int8:
        assert torch.equal(low.scale, scale)
        assert torch.equal(low.weight, held.weight.bfloat16())
    x = torch.randn(3, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = held(x)
    output.float().sum().backward()
    assert (output.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(x.grad, torch.ones(3, 7) @ held.weight, rtol=0.02, atol=0.02)
    other = copy.deepcopy(held)
    other.lay_over((torch.tensor([0]), torch.tensor([0])), torch.tensor([7.0]))
    assert held.weight[0, 0] != 7.0


@ways
def test_its_state_is_that_of_a_plain_layer_and_is_not_loaded(int8):
    held, plain = twins(LAYERS["linear"], int8)
    place = torch.tensor([1]), torch.tensor([4])
    held.lay_over(place, torch.tensor([9.0]))
    plain.weight[place] = 9.0
    assert tiny.same_bits(dict(held.state_dict()), dict(plain.state_dict()))
    with pytest.raises(InputError, match="only read: load the state before"):
        held.load_state_dict(plain.state_dict())


def test_what_can_be_held():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    assert can_be_held(Renamed(2, 2))
    assert can_be_held(Conv1D(2, 2))
    for module in (Scaled(2, 2), nn.Conv2d(1, 1, 1), nn.Embedding(2, 2), nn.LayerNorm(2)):
        assert not can_be_held(module)
    held = from_base("it", nn.Linear(2, 2), int8=True)
    assert not can_be_held(held)
    assert plain_dtype(held) == "int8"
    assert plain_dtype(nn.Linear(2, 2).bfloat16()) == "bfloat16"


def test_a_weight_that_is_not_finite():
    layer = made(LAYERS["linear"])
    layer.weight[2, 2] = torch.nan
    with pytest.raises(InputError, match=r"'some.layer' holds weights that are not finite"):
        from_base("some.layer", layer, int8=True)


@layers
def test_what_a_plain_layer_would_be(make):
    plain = made(make)
    expected = from_base("it", copy.deepcopy(plain), int8=True).weight
    assert torch.equal(rounded_to_int8(plain), expected)


@ways
def test_sparse_training_on_it_equals_that_on_the_plain_weight(int8):
    """To the bit, for every step and what is learnt."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).requires_grad_(False)
    held = copy.deepcopy(plain)
    for name in ("0", "2"):
        layer = from_base(name, held.get_submodule(name), int8=int8)
        plain.get_submodule(name).weight.copy_(layer.weight)
    support = te.select(plain, per_neuron=2, rule="random", linears=["*"])
    learnt = []
    for model in (plain, held):
        te.install(model, support, trainable=[])
        tiny_loop(model)
        learnt.append(te.extract(model))
        assert isinstance(te.fuse(model)[0], nn.Linear)
    assert isinstance(held[0], HeldLayer)
    for name, linear in learnt[0].linears.items():
        assert torch.equal(linear.values, learnt[1].linears[name].values)
        assert torch.equal(plain.get_submodule(name).weight, held.get_submodule(name).weight)


def tiny_loop(model):
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=0.1)
    for seed in range(3):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
