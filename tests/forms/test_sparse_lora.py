"""Sparse LoRA has the gradients of a dense ``W + M∘(BA)·alpha/r`` in fp64, and never makes a dense product."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_models import KERNELS, SHARED, Attention, Made, saved_bytes, stored_columns, support_of
from torch import nn
from torch.func import functional_call
from transformers import AlbertConfig, AlbertModel
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms import sparse_lora
from taskedge.forms.kernels import force_kernel
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LayerSupport, Support


def in_double(model):
    """Convert the factors to fp64 and make B nonzero, so that a comparison can be strict."""
    draw = torch.Generator().manual_seed(3)
    for layer in sparse_layers(model).values():
        entries = layer.entries
        entries.a.data = entries.a.data.double()
        entries.b.data = torch.randn(entries.b.shape, generator=draw, dtype=torch.float64)
        if entries.step is not None:
            entries.step = entries.step.double()
    return model


def dense(plain, model):
    """Return the weights of ``plain`` with a dense product under a mask, by name, and their factors [A, B]."""
    weights, factors = {}, {}
    for name, layer in sparse_layers(model).items():
        entries = layer.entries
        a, b = (tensor.detach().clone().requires_grad_() for tensor in (entries.a, entries.b))
        mask = torch.zeros(len(b), a.shape[1], dtype=a.dtype)
        mask[entries.rows, entries.columns] = 1 if entries.step is None else entries.step
        linear = linears(plain)[name]
        weight = linear.weight + mask * (b @ a) * entries.scale
        weights[f"{name}.weight".removeprefix(".")] = linear.adapter.matrix(weight)
        factors[name] = a, b
    return weights, factors


def assert_close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def compare(plain, model, run):
    """Compare outputs and the gradients of every A and B with dense autograd."""
    weights, factors = dense(plain, model)
    ours = run(model)
    theirs = run(lambda *given, **named: functional_call(plain, weights, given, named))
    assert_close(ours, theirs)
    for output in (ours, theirs):
        output.square().sum().backward()
    for name, layer in sparse_layers(model).items():
        assert layer.entries.a.grad.abs().max() > 0
        assert_close(layer.entries.a.grad, factors[name][0].grad)
        assert_close(layer.entries.b.grad, factors[name][1].grad)


def installed(model, support=None, **options):
    options = {"trainable": [], "form": "sparse_lora", "rank": 3, "alpha": 5.0} | options
    return te.install(model, support or support_of(model), **options)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: Conv1D(4, 6)])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_a_linear_against_dense_autograd(make, shape, kernel):
    layer = make().double()
    plain = copy.deepcopy(layer)
    in_double(installed(layer))
    x = torch.randn(shape, dtype=torch.float64)
    with force_kernel(kernel):
        compare(plain, layer, lambda one: one(x))


@pytest.mark.parametrize("step", ["plain", "activation"])
def test_a_model_against_dense_autograd(model, step):
    """With scaled steps the mask contains the steps instead of ones."""
    given = tiny.batch(model)
    support = te.select(model, [given], budget="5%", rule="random", allocation="global")
    model.double()
    given = (
        {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
        if isinstance(given, dict)
        else (given.double())
    )
    plain = copy.deepcopy(model)
    in_double(installed(model, support, step=step))
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
    model.pooler = None  # its input is one token
    plain = copy.deepcopy(model)
    inside = {name: own for name, own in support_of(model).linears.items() if "layer_groups" in name}
    in_double(installed(model, Support(inside, 10_000)))
    ids = torch.arange(12).view(2, 6)
    compare(plain, model, lambda one: one(input_ids=ids).last_hidden_state)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    rank=st.integers(1, 9),
    share=st.floats(0, 1),
    at_once=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_support_and_rank_gathered_in_chunks_of_any_size(shape, rank, share, at_once, seed):
    draw = torch.Generator().manual_seed(seed)
    flat = (torch.rand(shape[0] * shape[1], generator=draw) < share).nonzero().flatten()
    layer = nn.Linear(shape[1], shape[0]).double()
    plain = copy.deepcopy(layer)
    installed(layer, Support({"": LayerSupport.from_flat(shape, flat, "")}, 99), rank=rank)
    x = torch.randn(3, shape[1], dtype=torch.float64)
    before = sparse_lora.CHUNK_NUMBERS
    sparse_lora.CHUNK_NUMBERS = at_once
    try:
        in_double(layer)
        weights, factors = dense(plain, layer)
        ours, theirs = layer(x), functional_call(plain, weights, x)
        assert_close(ours, theirs)
        for output in (ours, theirs):
            output.square().sum().backward()
        assert_close(layer.entries.a.grad, factors[""][0].grad)
        assert_close(layer.entries.b.grad, factors[""][1].grad)
    finally:
        sparse_lora.CHUNK_NUMBERS = before


def test_before_training_the_model_computes_the_same(model):
    given = tiny.batch(model)
    before, state = tiny.logits(model, given), tiny.state(model)
    installed(model)
    assert torch.equal(tiny.logits(model, given), before)
    assert tiny.same_bits(te.fuse(model).state_dict(), state)


def test_a_starts_as_in_lora_from_the_seed_alone(bert):
    installed(bert, rank=4, seed=3)
    again, other = (installed(tiny.bert(), rank=4, seed=seed) for seed in (3, 4))
    for name, layer in sparse_layers(bert).items():
        entries = layer.entries
        width = entries.a.shape[1]
        assert entries.a.shape == (4, width)
        assert 0.8 / width**0.5 < entries.a.abs().max() <= 1 / width**0.5
        assert not entries.b.any()
        assert torch.equal(entries.a, sparse_layers(again)[name].entries.a)
        assert not torch.equal(entries.a, sparse_layers(other)[name].entries.a)


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(None, None, 1.0), (4, None, 1.0), (4, 2, 0.5), (None, 16, 2.0)])
def test_alpha_is_the_rank_unless_given(mlp, rank, alpha, scale):
    installed(mlp, rank=rank, alpha=alpha)
    assert mlp.first.entries.scale == scale
    assert len(mlp.first.entries.a) == (rank or 8)


def test_only_the_factors_train_and_the_delta_is_a_sparse_one(model, tmp_path):
    support = te.select(model, rule="random", budget="2%")
    before, fresh = tiny.state(model), copy.deepcopy(model)
    te.install(model, support, form="sparse_lora", rank=2)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {f"{name}.entries.{factor}" for name in support.linears for factor in "ab"} <= names
    tiny.train(model)
    given = tiny.batch(model, seed=9)
    expected = tiny.logits(model, given)
    after = model.state_dict()
    for name, own in support.linears.items():
        chosen = torch.zeros(own.shape, dtype=torch.bool)
        chosen[own.rows, own.columns] = True
        chosen = linears(model)[name].adapter.matrix(chosen)
        moved = before[f"{name}.weight"] != after[f"{name}.weight"]
        assert moved.any()
        assert not moved[~chosen].any()
    delta = te.extract(model)
    assert delta.num_entries == support.num_entries
    te.apply(fresh, te.load(te.save(delta, tmp_path / "x")))
    assert torch.equal(tiny.logits(fresh, given), expected)
    te.fuse(model)
    assert torch.equal(tiny.logits(model, given), expected)
    assert tiny.same_bits(model.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("make", [lambda: nn.Linear(37, 53), lambda: Conv1D(53, 37)])
def test_the_dense_product_is_never_made(make):
    layer = make()
    support = LayerSupport.from_flat((53, 37), torch.arange(53) * 37 + 5, "")
    installed(layer, Support({"": support}, 2000), rank=2)
    optimizer = torch.optim.AdamW(tiny.trained(layer), lr=0.1)
    x = torch.randn(11, 37, requires_grad=True)
    with Made(list(layer.parameters())) as watch:
        for _ in range(2):
            layer(x).square().sum().backward()
            optimizer.step()
    assert watch.made
    assert max(tensor.numel() for tensor in watch.made) < 37 * 53


def test_many_entries_are_gathered_in_chunks():
    """The factors of half of a matrix, gathered all at once, would take several times its memory."""
    layer = nn.Linear(64, 64)
    support = Support({"": LayerSupport.from_flat((64, 64), torch.arange(0, 64 * 64, 2), "")}, 9999)
    installed(layer, support, rank=8)
    before = sparse_lora.CHUNK_NUMBERS
    sparse_lora.CHUNK_NUMBERS = 1024
    try:
        with Made(list(layer.parameters())) as watch:
            layer(torch.randn(3, 64)).square().sum().backward()
    finally:
        sparse_lora.CHUNK_NUMBERS = before
    assert max(tensor.numel() for tensor in watch.made) <= 64 * 64 // 2


def test_the_backward_pass_needs_what_the_sparse_form_saves(bert):
    """Saved are the columns, and the offsets, rows and columns of the entries: nothing more per token."""
    support = support_of(bert)

    def kept(one):
        return saved_bytes(one, lambda model: tiny.logits(model, given))[0]

    sizes = []
    for tokens in (6, 12):
        given = tiny.batch(bert, tokens=tokens)
        free = te.install(copy.deepcopy(bert), support, trainable=[])
        sizes.append(kept(installed(copy.deepcopy(bert), support)) - kept(free))
        assert stored_columns(free) > 0
    assert sizes[0] == sizes[1] == 0


def counted(monkeypatch):
    """Return a list that grows by one for every gather of the product."""
    original, calls = sparse_lora._chunks, []
    monkeypatch.setattr(sparse_lora, "_chunks", lambda *given: calls.append(1) or original(*given))
    return calls


def test_offsets_are_computed_only_after_a_change(monkeypatch):
    layer = installed(nn.Linear(6, 4))
    x = torch.randn(3, 6)
    layer(x)
    calls = counted(monkeypatch)
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    layer(x), layer.state_dict()
    assert not calls
    layer.entries.b.data.fill_(1.0)  # through data: no version counter tells
    outputs = [layer(x) for _ in range(3)]
    assert len(calls) == 1
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[0], nn.functional.linear(x, layer._parameters["weight"], layer.bias))


def test_offsets_computed_in_inference_mode_train_afterwards():
    layer = installed(nn.Linear(6, 4))
    layer.entries.b.data.fill_(1.0)
    with torch.inference_mode():
        layer(torch.randn(3, 6))
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.entries.a.grad.any()


def test_readers_of_one_input_share_its_columns():
    model = Attention().double()
    plain = copy.deepcopy(model)
    in_double(installed(model, support_of(model, shared_inputs=SHARED)))
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    compare(plain, model, lambda one: one(x))
    assert model.query.entries.shared_input is model.key.entries.shared_input


def test_factors_stay_fp32_and_the_state_dict_restores_them(bert):
    installed(bert.to(torch.bfloat16)).to(torch.bfloat16)
    tiny.train(bert)
    assert all(
        layer.entries.a.dtype == layer.entries.b.dtype == torch.float32 for layer in sparse_layers(bert).values()
    )
    other = installed(tiny.bert().to(torch.bfloat16), seed=5)
    other.load_state_dict(tiny.state(bert))
    given = tiny.batch(bert)
    assert torch.equal(tiny.logits(other, given), tiny.logits(bert, given))
    twin = copy.deepcopy(bert)
    tiny.train(twin)
    assert not torch.equal(tiny.logits(twin, given), tiny.logits(bert, given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "sprase_lora"}, r"unknown form 'sprase_lora'; did you mean 'sparse_lora'"),
        ({"form": "sparse", "alpha": None}, "form 'sparse' has no rank"),
        ({"form": "sparse", "rank": None}, "form 'sparse' has no alpha"),
        ({"rank": 0}, "form 'sparse_lora' has a rank of 0: a whole number from 1"),
        ({"rank": 2.0}, "a rank of 2.0"),
        ({"rank": True}, "a rank of True"),
        ({"alpha": 0.0}, "alpha 0.0: a finite number above 0"),
        ({"alpha": float("inf")}, "alpha inf"),
    ],
)
def test_options_that_a_form_does_not_have_are_refused(mlp, options, message):
    before = tiny.state(mlp)
    with pytest.raises(InputError, match=message):
        installed(mlp, **options)
    assert tiny.same_bits(mlp.state_dict(), before)
    assert not sparse_layers(mlp)
