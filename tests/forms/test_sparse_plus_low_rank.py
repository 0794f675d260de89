"""Entries in place and a product beside them on the same linears: dense autograd in fp64 is the oracle."""

import copy
from contextlib import nullcontext

import pytest
import tiny
import torch
from sparse_models import KERNELS
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.dash import add_directions
from taskedge.forms.filtered import add_filters
from taskedge.forms.kernels import force_kernel
from taskedge.forms.low_rank import low_rank_layers, with_product
from taskedge.forms.sparse import sparse_layers
from taskedge.forms.sparse_plus_low_rank import (
    SparsePlusLowRankLayer,
    base_weight,
    set_product_rate,
    sparse_plus_low_rank_layers,
)
from taskedge.selection.support import LayerSupport, Support
from taskedge.training.lora import lora_support

pytestmark = pytest.mark.usefixtures("gather_on_tiny_layers")
FORM = "sparse_plus_low_rank"


def installed(model, support=None, **options):
    if support is None:
        support = te.select(model, [tiny.batch(model)], per_neuron=1)
    return te.install(model, support, **{"trainable": [], "form": FORM, "rank": 2, "alpha": 3.0} | options)


def stirred(model, dtype=torch.float64):
    """Give entries and factors values in fp64, so that a comparison can be strict and no gradient is 0."""
    draw = torch.Generator().manual_seed(3)
    for layer in sparse_plus_low_rank_layers(model).values():
        entries, product = layer.entries, layer.product
        entries.offsets.data = torch.randn(entries.offsets.shape, generator=draw, dtype=dtype)
        product.a.data = product.a.data.to(dtype)
        product.b.data = torch.randn(product.b.shape, generator=draw, dtype=dtype)
        if entries.step is not None:
            entries.step = entries.step.to(dtype)
    return model


def compare(plain, model, run):
    """Compare outputs and all gradients with those of a dense ``W + M∘(step·Δ) + scale·BA``."""
    weights, leaves = {}, {}
    for name, layer in sparse_plus_low_rank_layers(model).items():
        entries, product, linear = layer.entries, layer.product, linears(plain)[name]
        parts = [part.detach().clone().requires_grad_() for part in (entries.offsets, product.a, product.b)]
        offsets, a, b = parts
        moved = offsets if entries.step is None else entries.step * offsets
        sparse = torch.zeros_like(linear.weight).index_put((entries.rows, entries.columns), moved)
        weight = linear.weight + sparse + product.scale * (b @ a)
        weights[f"{name}.weight".removeprefix(".")] = linear.adapter.matrix(weight)
        leaves[name] = parts
    assert leaves
    ours = run(model)
    theirs = run(lambda *given, **named: functional_call(plain, weights, given, named))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for output in (ours, theirs):
        output.square().sum().backward()
    for name, layer in sparse_plus_low_rank_layers(model).items():
        trained = layer.entries.offsets, layer.product.a, layer.product.b
        for mine, dense in zip(trained, leaves[name], strict=True):
            assert mine.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, dense.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 4, bias=False), lambda: Conv1D(4, 6)])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_a_linear_against_dense_autograd(make, shape, kernel):
    layer = make().double()
    plain = copy.deepcopy(layer)
    own = LayerSupport.from_flat((4, 6), torch.tensor([0, 5, 8, 13, 14, 23]), "")
    stirred(installed(layer, Support({"": own}, 24)))
    x, other = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    other.data.copy_(x.data)
    with force_kernel(kernel):
        compare(plain, layer, lambda one: one(x if one is layer else other))
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", ["plain", "activation"])
def test_a_model_against_dense_autograd(model, step):
    given = tiny.batch(model)
    support = te.select(model, [given], budget="5%", rule="random", allocation="global")
    model.double()
    given = (
        {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
        if isinstance(given, dict)
        else given.double()
    )
    plain = copy.deepcopy(model)
    stirred(installed(model, support, step=step))
    compare(plain, model, lambda one: tiny.logits(one, given))


def test_before_training_it_is_the_base_and_fuse_changes_no_bit(model):
    given = tiny.batch(model)
    next(iter(linears(model).values())).weight[:, 0] = -0.0
    before, state = tiny.logits(model, given), tiny.state(model)
    modules = dict(model.named_modules())
    installed(model)
    assert torch.equal(tiny.logits(model, given), before)
    assert all(dict(model.named_modules())[name] is module for name, module in modules.items())
    te.fuse(model)
    assert tiny.same_bits(model.state_dict(), state)
    assert not any(isinstance(module, SparsePlusLowRankLayer) for module in model.modules())


def test_each_part_is_that_of_its_own_form(bert):
    """With no offsets it computes what the low-rank form does, and with B at 0 what the sparse form does: each bit."""
    given = tiny.batch(bert)
    support = te.select(bert, [given], per_neuron=1)
    both, sparse, low_rank = (copy.deepcopy(bert) for _ in range(3))
    installed(both, support, seed=4)
    te.install(sparse, support, trainable=[])
    products = Support({}, support.model_parameters, low_rank=dict.fromkeys(support.linears, 2))
    te.install(low_rank, products, trainable=[], alpha=3.0, seed=4)
    for one in (both, sparse):
        for layer in sparse_layers(one).values():
            layer.entries.offsets.data = torch.linspace(-1, 1, len(layer.entries.rows))
    assert torch.equal(tiny.logits(both, given), tiny.logits(sparse, given))
    for layer in sparse_layers(both).values():
        layer.entries.offsets.data.zero_()
    for one in (both, low_rank):
        for layer in low_rank_layers(one).values():
            layer.product.b.data = torch.linspace(-1, 1, layer.product.b.numel()).view_as(layer.product.b)
    assert torch.equal(tiny.logits(both, given), tiny.logits(low_rank, given))
    with torch.no_grad():
        assert torch.equal(tiny.logits(both, given), tiny.logits(low_rank, given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_extracted_applied_and_reverted(dtype, tmp_path):
    base = tiny.bert().to(dtype)
    model, given = copy.deepcopy(base), tiny.batch(base)
    installed(model, step="activation")
    tiny.train(model)
    trained = tiny.logits(model, given)
    delta = te.load(te.save(te.extract(model), tmp_path / "task.delta"))
    assert delta.linears.keys() == delta.low_rank.keys() == set(delta.overlap)
    for name, layer in sparse_plus_low_rank_layers(model).items():
        assert torch.equal(base_weight(layer), linears(base)[name].weight)
        assert layer.entries.offsets.any()
        assert layer.product.b.any()
        weight = linears(base)[name].weight.clone()
        weight[layer.entries.rows, layer.entries.columns] = layer.entries.values.to(dtype)
        product = delta.low_rank[name]
        delta_weight = with_product(weight, product.a, product.b, product.scale)
        assert torch.equal(linears(te.apply(copy.deepcopy(base), delta))[name].weight, delta_weight)
    applied = copy.deepcopy(base)
    for _ in range(2):
        te.apply(applied, delta)
    te.fuse(model)
    assert tiny.same_bits(applied.state_dict(), model.state_dict())
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(tiny.logits(applied, given), trained, rtol=tolerance, atol=tolerance)
    te.revert(applied)
    assert tiny.same_bits(applied.state_dict(), base.state_dict())


def test_the_delta_of_another_base_is_refused(bert):
    delta = te.extract(tiny.train(installed(tiny.bert())))
    name = delta.overlap[0]
    entries = set(zip(delta.linears[name].rows.tolist(), delta.linears[name].columns.tolist(), strict=True))
    row, column = next((row, column) for row in range(16) for column in range(16) if (row, column) not in entries)
    linears(bert)[name].weight[row, column] += 1.0  # not at an entry: the product is bound to the whole weight
    state = tiny.state(bert)
    with pytest.raises(te.TaskEdgeError, match="1 of 12 linears hold other values"):
        te.apply(bert, delta)
    assert tiny.same_bits(bert.state_dict(), state)


class Readers(nn.Module):
    """Three linears that read one tensor."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.query(hidden) + self.key(hidden) + self.value(hidden)


def saved_for_backward(model, x):
    """Return the bytes of every storage that the backward pass keeps, by address."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t) or pack(t), lambda t: t):
        output = model(x)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for address, size in kept.items() if address not in parameters), output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_is_kept_once_for_both_parts_and_all_readers(dtype):
    names = ("query", "key", "value")
    model = Readers().to(dtype)
    rows, columns = torch.arange(64), torch.arange(64).flip(0)
    support = {name: LayerSupport((64, 64), rows, columns, "query") for name in names}
    x = torch.randn(256, 64, dtype=dtype, requires_grad=True)
    frozen, kept = copy.deepcopy(model).requires_grad_(False), []
    kept.append(saved_for_backward(frozen, x)[0])
    installed(model, Support(support, 10_000))
    kept.append(saved_for_backward(model, x)[0])
    one_input = 256 * 64 * x.element_size()
    assert kept[0] == one_input  # the output of tanh, which the linears read: kept by tanh already
    assert kept[1] == kept[0]
    alone = te.install(Readers().to(dtype), Support({}, 10_000, low_rank=dict.fromkeys(names, 2)), trainable=[])
    assert saved_for_backward(alone, x)[0] > kept[1]  # the low-rank form keeps r numbers per token as well


def test_a_block_that_rests_keeps_no_input():
    model = installed(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), Support(
        {"0": LayerSupport.from_flat((8, 8), torch.arange(0, 64, 9), "0")}, 64
    ))  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(100, 8, requires_grad=True)
    output = model[0](x)
    assert output.grad_fn.saved_tensors[0] is None
    plain = torch.autograd.grad(output.sum(), x)[0]
    expected = torch.ones(100, 8) @ model[0].weight  # B is 0
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16(autocast):
    """Factors and offsets stay fp32 and get finite gradients close to those of fp32."""
    found = []
    for half in (False, True):
        model = tiny.bert()
        installed(model, step="activation")
        stirred(model, torch.float32)
        for layer in sparse_plus_low_rank_layers(model).values():
            layer.product.b.data *= 0.02
            layer.entries.offsets.data *= 0.02
        if half and not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16) if half and autocast else nullcontext():
            loss = tiny.loss(model, tiny.batch(model))
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[1].items():
        assert gradient.dtype == torch.float32
        whole = found[0][name]
        assert (gradient - whole).norm() <= 0.2 * whole.norm() + 1e-3, name


def test_what_cannot_have_both():
    model = tiny.mlp()
    support = te.select(tiny.bert(), linears=["bert.embeddings.word_embeddings"], per_neuron=1, rule="magnitude")
    state = tiny.state(tiny.bert())
    bert = tiny.bert()
    with pytest.raises(InputError, match=r"only nn\.Linear and Conv1D can carry a low-rank product"):
        installed(bert, support)
    assert tiny.same_bits(bert.state_dict(), state)
    entries = te.select(model, rule="magnitude", per_neuron=1)
    both = Support(entries.linears, entries.model_parameters, low_rank={"second": 2})
    with pytest.raises(InputError, match="'second' is to train entries and a low-rank product: give entries only"):
        te.install(model, both)
    with pytest.raises(InputError, match="a rank of 0"):
        installed(model, entries, rank=0)
    installed(model, entries)
    for add in (lambda: add_directions(model, 2), lambda: add_filters(model, "cosine", 2)):
        with pytest.raises(InputError, match="'first' trains entries beside its product, which cannot have"):
            add()


def test_the_rate_of_the_products_is_relative():
    model = installed(tiny.mlp())
    layers = sparse_plus_low_rank_layers(model).values()
    assert {layer.product.relative_rate for layer in layers} == {0.1}
    set_product_rate(model, 0.5)
    assert {layer.product.relative_rate for layer in layers} == {0.5}
    plain = te.install(tiny.bert(), lora_support(tiny.bert(), 2, None))
    set_product_rate(plain, 0.5)
    assert {layer.product.relative_rate for layer in low_rank_layers(plain).values()} == {1.0}


def test_the_state_goes_from_one_model_to_another(bert):
    support = te.select(bert, [tiny.batch(bert)], per_neuron=1)
    one, other = installed(tiny.bert(), support), installed(tiny.bert(), support, seed=9)
    tiny.train(one)
    other.load_state_dict(one.state_dict())
    given = tiny.batch(bert)
    assert torch.equal(tiny.logits(one, given), tiny.logits(other, given))
    twin = copy.deepcopy(one)
    tiny.train(one)
    tiny.train(twin)
    assert tiny.same_bits(one.state_dict(), twin.state_dict())
