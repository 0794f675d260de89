"""LoRA-Dash: plain low rank before its start, the planted direction, gradients of dense autograd, and the file."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.func import functional_call

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.dash import FLOOR, add_directions, choose_directions, dash_layers, dash_state
from taskedge.selection.support import Support


def low_rank(model, rank=2, names=None):
    """Install products of a rank in all linears."""
    ranks = dict.fromkeys(candidates(model) if names is None else names, rank)
    support = Support({}, sum(parameter.numel() for parameter in model.parameters()), low_rank=ranks)
    return te.install(model, support, trainable=[], alpha=3.0)


def with_directions(model, directions=3, **more):
    low_rank(model, **more)
    add_directions(model, directions)
    return model


def trained(model, steps):
    """Train with AdamW."""
    return tiny.train(model, steps=steps)


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_before_the_start_it_is_low_rank_bit_for_bit(make):
    plain, dash = trained(low_rank(make()), 4), trained(with_directions(make()), 4)
    batch = tiny.batch(plain, seed=9)
    assert torch.equal(tiny.logits(plain, batch), tiny.logits(dash, batch))
    for name, parameter in plain.named_parameters():
        assert torch.equal(tiny.bits(parameter), tiny.bits(dash.get_parameter(name)))
    assert all(layer.product.c.grad is None for layer in dash_layers(dash).values())
    assert not dash_state(dash)
    one, other = te.extract(plain), te.extract(dash)
    assert all(torch.equal(one.low_rank[name].b, other.low_rank[name].b) for name in one.low_rank)


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_the_moment_of_the_choice_changes_no_output(make):
    model = trained(with_directions(make()), 3).eval()
    batch = tiny.batch(model)
    before = tiny.logits(model, batch)
    choose_directions(model)
    assert torch.equal(tiny.logits(model, batch), before)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_planted_direction_is_found(sign):
    torch.manual_seed(2)
    model = nn.ModuleDict({"first": nn.Linear(12, 9), "head": nn.Linear(9, 2)})
    weight = model["first"].weight.detach()
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    with_directions(model, 2, names=["first"], rank=1)
    product = model["first"].product
    planted = 5
    with torch.no_grad():  # the product moves one singular value a lot, and another direction by no singular value
        product.b.copy_(u[:, [planted]] * (2 * sign))
        product.a.copy_(v[[planted]] + 0.5 * v[[1]])
    (chosen,) = choose_directions(model).values()
    assert chosen[0] == planted
    assert float((product.u[:, 0] - u[:, planted]).abs().max()) < 1e-5
    assert float((product.v[0] - v[planted]).abs().max()) < 1e-5
    assert choose_directions(model) == {"first": chosen}


def test_the_choice_is_that_of_the_formula():
    model = trained(with_directions(tiny.bert(), 4), 5)
    layers = linears(tiny.bert())
    for name, chosen in choose_directions(model).items():
        product = dash_layers(model)[name].product
        u, s, v = torch.linalg.svd(layers[name].weight.double(), full_matrices=False)
        change = product.scale * (product.b.detach().double() @ product.a.detach().double())
        rates = torch.tensor([float(u[:, i] @ change @ v[i]) for i in range(len(s))]).abs() / (s + FLOOR * s[0]).float()
        assert chosen == torch.sort(rates, descending=True).indices[:4].tolist()


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_gradients_are_those_of_dense_autograd(make):
    model, plain = make().double(), make().double()
    with_directions(model)
    generator = torch.Generator().manual_seed(3)
    products = {name: layer.product for name, layer in dash_layers(model).items()}
    for product in products.values():
        product.b.data = torch.randn(product.b.shape, generator=generator, dtype=torch.float64)
        product.a.data = product.a.data.double()
        product.u, product.v = product.u.double(), product.v.double()
        product.c.data = torch.randn(product.c.shape, generator=generator, dtype=torch.float64)
    choose_directions(model)
    weights, variables = {}, []
    for name, product in products.items():
        a, b, c = (p.detach().clone().requires_grad_() for p in (product.a, product.b, product.c))
        variables += [a, b, c]
        linear = linears(plain)[name]
        dense = linear.weight + product.scale * b @ a + product.u @ torch.diag(c) @ product.v
        weights[f"{name}.weight"] = linear.adapter.matrix(dense)
    batch = tiny.batch(model)
    expected = functional_call(plain, weights, (), batch).logits
    found = tiny.logits(model, batch)
    assert float((found - expected).detach().abs().max()) <= 1e-9
    gradients = torch.autograd.grad(expected.square().sum(), variables)
    own = [p for product in products.values() for p in (product.a, product.b, product.c)]
    for one, other in zip(torch.autograd.grad(found.square().sum(), own), gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-9


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_the_delta_and_the_fused_model_compute_what_was_trained(make):
    model = trained(with_directions(make()), 3)
    choose_directions(model)
    trained(model, 3)
    assert all(bool(layer.product.c.any()) for layer in dash_layers(model).values())
    batch = tiny.batch(model, seed=4)
    expected = tiny.logits(model.eval(), batch)
    delta = te.extract(model)
    assert {product.rank for product in delta.low_rank.values()} == {5}
    other = make().eval()
    te.apply(other, delta)
    torch.testing.assert_close(tiny.logits(other, batch), expected, atol=1e-5, rtol=0)
    fused = te.fuse(copy.deepcopy(model))
    torch.testing.assert_close(tiny.logits(fused.eval(), batch), expected, atol=1e-5, rtol=0)
    assert type(fused.get_submodule(next(iter(delta.low_rank)))) is type(
        make().get_submodule(next(iter(delta.low_rank)))
    )


def test_what_cannot_be_is_refused(bert):
    with pytest.raises(InputError, match="trains no low-rank product"):
        add_directions(bert, 2)
    low_rank(bert)
    with pytest.raises(InputError, match="has 16 singular directions, not 17: give from 1 to 16"):
        add_directions(bert, 17)
    assert not dash_layers(bert)
