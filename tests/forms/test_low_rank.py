"""A low-rank layer adds ``scale·x AᵀBᵀ`` to its linear, with the gradients of dense autograd in fp64, and fuses."""

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.func import functional_call
from transformers import AlbertConfig, AlbertModel
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.low_rank import Factors, fuse_low_rank, low_rank_layers, make_low_rank, with_product
from taskedge.selection.support import LayerSupport, Support


def support_for(model, rank=3, names=None, **parts):
    ranks = dict.fromkeys(candidates(model) if names is None else names, rank)
    return Support({}, sum(parameter.numel() for parameter in model.parameters()), low_rank=ranks, **parts)


def installed(model, rank=3, trainable=(), names=None, **options):
    return te.install(model, support_for(model, rank, names), trainable=list(trainable), **{"alpha": 5.0} | options)


def stirred(model, dtype=torch.float64):
    """Convert the factors to fp64 and make B nonzero, so that a comparison can be strict."""
    draw = torch.Generator().manual_seed(3)
    for layer in low_rank_layers(model).values():
        product = layer.product
        product.a.data = product.a.data.to(dtype)
        product.b.data = torch.randn(product.b.shape, generator=draw, dtype=dtype)
    return model


def compare(plain, model, run):
    """Compare outputs and the gradients of every A and B with a dense ``W + scale·BA``."""
    weights, factors = {}, {}
    for name, layer in low_rank_layers(model).items():
        a, b = (tensor.detach().clone().requires_grad_() for tensor in (layer.product.a, layer.product.b))
        linear = linears(plain)[name]
        weight = linear.weight + layer.product.scale * (b @ a)
        weights[f"{name}.weight".removeprefix(".")] = linear.adapter.matrix(weight)
        factors[name] = a, b
    assert factors
    ours = run(model)
    theirs = run(lambda *given, **named: functional_call(plain, weights, given, named))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for output in (ours, theirs):
        output.square().sum().backward()
    for name, layer in low_rank_layers(model).items():
        for ours, theirs in zip((layer.product.a, layer.product.b), factors[name], strict=True):
            assert ours.grad.abs().max() > 0
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 4, bias=False), lambda: Conv1D(4, 6)])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_a_linear_against_dense_autograd(make, shape):
    layer = make().double()
    plain = copy.deepcopy(layer)
    stirred(installed(layer, names=[""]))
    x, other = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    other.data.copy_(x.data)
    compare(plain, layer, lambda one: one(x if one is layer else other))
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_a_model_against_dense_autograd(model):
    given = tiny.batch(model)
    model.double()
    given = (
        {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
        if isinstance(given, dict)
        else given.double()
    )
    plain = copy.deepcopy(model)
    stirred(installed(model))
    compare(plain, model, lambda one: tiny.logits(one, given))


def test_a_layer_that_runs_many_times():
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = AlbertModel(config).eval().double()
    plain = copy.deepcopy(model)
    stirred(installed(model, names=[name for name in linears(model) if "layer_groups" in name]))
    ids = torch.arange(12).view(2, 6)
    run = lambda one: one(input_ids=ids).last_hidden_state  # noqa: E731
    compare(plain, model, run)
    expected = run(model)
    torch.testing.assert_close(run(te.fuse(model)), expected, rtol=1e-9, atol=1e-12)


def test_before_training_nothing_differs_and_fuse_changes_no_bit(model):
    given = tiny.batch(model)
    next(iter(linears(model).values())).weight[:, 0] = -0.0
    before, state = tiny.logits(model, given), tiny.state(model)
    modules = dict(model.named_modules())
    installed(model)
    assert torch.equal(tiny.logits(model, given), before)
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())
    te.fuse(model)
    assert tiny.same_bits(model.state_dict(), state)
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in tiny.MODELS[kind(model)]().named_modules()
    }


def kind(model):
    return next(name for name, make in tiny.MODELS.items() if type(make()) is type(model))


def test_only_factors_and_the_head_train_and_the_base_stays(bert):
    before = tiny.state(bert)
    te.install(bert, support_for(bert))
    names = {name for name, parameter in bert.named_parameters() if parameter.requires_grad}
    assert names == {f"{name}.product.{factor}" for name in candidates(tiny.bert()) for factor in "ab"} | {
        "classifier.weight",
        "classifier.bias",
    }
    tiny.train(bert)
    after = bert.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("classifier"))


def test_fused_it_computes_what_it_did_unfused(model):
    tiny.train(installed(model, trainable=[]), lr=0.3)
    given = tiny.batch(model, seed=9)
    expected = tiny.logits(model, given)
    te.fuse(model)
    assert not low_rank_layers(model)
    torch.testing.assert_close(tiny.logits(model, given), expected, rtol=1e-4, atol=1e-5)


def test_factors_come_from_the_seed_alone():
    one, again, other = (installed(tiny.bert(), seed=seed) for seed in (3, 3, 4))
    for name, layer in low_rank_layers(one).items():
        assert torch.equal(layer.product.a, low_rank_layers(again)[name].product.a)
        assert not torch.equal(layer.product.a, low_rank_layers(other)[name].product.a)
        assert not layer.product.b.any()


def test_several_ranks_share_one_alpha(mlp):
    te.install(mlp, Support({}, 245, low_rank={"first": 2, "second": 8}), alpha=4)
    assert [layer.product.scale for layer in low_rank_layers(mlp).values()] == [2.0, 0.5]
    te.fuse(mlp)
    te.install(mlp, Support({}, 245, low_rank={"first": 2, "second": 8}))
    assert [layer.product.scale for layer in low_rank_layers(mlp).values()] == [1.0, 1.0]


def test_beside_entries_and_full_parameters(bert):
    """A hybrid trains one linear by entries, one by a product, a bias in full, and the head."""
    names = list(candidates(bert))
    given = tiny.batch(bert)
    chosen = te.select(bert, [given], per_neuron=1, linears=names[:1])
    support = Support(
        chosen.linears, 5859, low_rank={names[1]: 2}, full_parameters=("bert.encoder.layer.1.output.dense.bias",)
    )
    te.install(bert, support, step="activation")
    assert {name for name, parameter in bert.named_parameters() if parameter.requires_grad} == {
        f"{names[0]}.entries.offsets",
        f"{names[1]}.product.a",
        f"{names[1]}.product.b",
        "bert.encoder.layer.1.output.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    tiny.train(bert)
    delta = te.extract(bert)
    assert (list(delta.linears), list(delta.low_rank)) == (names[:1], names[1:2])
    assert set(delta.full_parameters) == {
        "bert.encoder.layer.1.output.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    fused = te.fuse(bert)
    fresh = te.apply(tiny.bert(), delta)
    assert tiny.same_bits(fresh.state_dict(), fused.state_dict())


def test_full_parameters_alone(bert):
    te.install(bert, Support({}, 5859, full_parameters=("bert.pooler.dense.bias",)), trainable=[])
    names = [name for name, parameter in bert.named_parameters() if parameter.requires_grad]
    assert names == ["bert.pooler.dense.bias"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_keeps_fp32_factors_and_is_rounded_once(dtype):
    layer = nn.Linear(32, 16).to(dtype)
    weight = layer.weight.detach().clone()
    stirred(installed(layer, names=[""]), torch.float32).to(dtype)
    a, b, scale = layer.product.a.detach(), layer.product.b.detach(), layer.product.scale
    assert a.dtype == b.dtype == torch.float32
    assert layer(torch.randn(3, 32, dtype=dtype)).dtype == dtype
    te.fuse(layer)
    exact = weight.double() + scale * (b.double() @ a.double())
    assert torch.equal(layer.weight, (weight.float() + scale * (b @ a)).to(dtype))
    assert (layer.weight.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


def test_autocast(bert):
    stirred(installed(bert), torch.float32)
    expected = tiny.logits(bert, tiny.batch(bert))
    with torch.autocast("cpu", torch.bfloat16):
        output = tiny.logits(bert, tiny.batch(bert))
    output.sum().backward()
    torch.testing.assert_close(output.float(), expected, rtol=5e-2, atol=5e-2)


def test_copies_and_state(bert):
    tiny.train(installed(bert))
    twin = copy.deepcopy(bert)
    other = installed(tiny.bert(), seed=9)
    other.load_state_dict(tiny.state(bert))
    given = tiny.batch(bert)
    for one in (twin, other):
        assert torch.equal(tiny.logits(one, given), tiny.logits(bert, given))
    tiny.train(twin)
    assert not torch.equal(tiny.logits(twin, given), tiny.logits(bert, given))


def test_make_low_rank_and_fuse_low_rank_are_inverse():
    layer = Conv1D(4, 6)
    weight = layer.weight.detach().clone()
    linear = linears(layer)[""]
    swapped = make_low_rank(linear, 2, Factors(torch.Generator().manual_seed(0)))
    assert swapped is layer
    swapped.product.b.data.fill_(0.5)
    expected = with_product(weight.t(), swapped.product.a.detach(), swapped.product.b.detach(), 1.0)
    assert type(fuse_low_rank(swapped)) is Conv1D
    assert torch.equal(layer.weight, expected.t())


def entries(name, shape):
    return {name: LayerSupport.from_flat(shape, torch.tensor([1]), name)}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"low_rank": {"secnnd": 2}}, r"no linear 'secnnd'; did you mean 'second'"),
        ({"low_rank": {"first": 0}}, "linear 'first' has a rank of 0"),
        ({"low_rank": {"first": "2"}}, "linear 'first' has a rank of '2'"),
        ({"linears": entries("first", (10, 12)), "low_rank": {"first": 2}}, "'first' is to train entries and a low-ra"),
        (
            {"low_rank": {"first": 2}, "full_parameters": ("first.weight",)},
            r"'first\.weight' carries a low-rank product",
        ),
        (
            {"low_rank": {"first": 2}, "full_parameters": ("frst.bias",)},
            r"no parameter is named 'frst\.bias'; did you mean",
        ),
        ({}, "the support is empty"),
    ],
)
def test_a_failed_install_leaves_the_model_unchanged(mlp, parts, message):
    before = tiny.state(mlp)
    with pytest.raises(InputError, match=message):
        te.install(mlp, Support(**{"linears": {}, "model_parameters": 245} | parts))
    assert tiny.same_bits(mlp.state_dict(), before)
    assert all(parameter.requires_grad for parameter in mlp.parameters())
    assert not low_rank_layers(mlp)


def test_a_tied_weight_and_a_second_change_are_refused(mlp):
    mlp.third = nn.Linear(10, 8)
    mlp.third.weight = mlp.second.weight
    with pytest.raises(InputError, match="'second' cannot carry a low-rank product: its weight is tied"):
        te.install(mlp, Support({}, 245, low_rank={"second": 2}))
    te.install(mlp, Support({}, 245, low_rank={"first": 2}))
    outer = nn.Module()
    outer.inner = mlp
    for other in (
        Support({}, 245, low_rank={"inner.first": 2}),
        Support(entries("inner.first", (10, 12)), 245),
    ):
        with pytest.raises(InputError, match=r"'inner\.first' already trains: fuse the model"):
            te.install(outer, other, trainable=[])
