"""bf16: offsets train in fp32 and are rounded once, into the weight; small updates are not lost."""

import copy

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LayerSupport, Support


def one_entry(weight=1.0):
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.fill_(weight)
    return te.install(layer, Support({"": LayerSupport.from_flat((1, 1), torch.tensor([0]), "")}, 1), trainable=[])


@pytest.mark.parametrize("step", ["plain", "activation"])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
def test_the_weight_holds_the_rounded_values_and_nothing_else_changed(make, step):
    model = make().to(torch.bfloat16)
    before = tiny.state(model)
    given = as_bf16(tiny.batch(model))
    te.install(model, te.select(model, [given], per_neuron=2), step=step)
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        tiny.logits(model, given).float().square().mean().backward()
        optimizer.step()
    tiny.logits(model, given)
    for name, layer in sparse_layers(model).items():
        entries, linear = layer.entries, linears(model)[name]
        moved = entries.offsets if entries.step is None else entries.step * entries.offsets
        exact = entries.base.double() + moved.detach().double()
        stored = linear.read(entries.rows, entries.columns)
        assert stored.dtype == torch.bfloat16
        assert torch.equal(stored, exact.float().to(torch.bfloat16))
        assert ((stored.double() - exact).abs() <= exact.abs() * 2**-8).all()  # half a step of bf16
        assert not torch.equal(exact.float(), stored.float())  # the offsets know more than the weight
        original = linear.adapter.matrix(before[f"{name}.weight"]).clone()
        original[entries.rows, entries.columns] = stored
        assert torch.equal(linear.weight, original)


def test_small_updates_of_an_optimizer_add_up_where_a_bf16_weight_would_lose_them():
    """200 steps of 1e-3 from 1.0: each is a quarter of the distance to the next bf16 number."""
    naive = nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    layer = one_entry()
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    for parameter, run in ((naive, lambda: x @ naive), (layer.entries.offsets, lambda: layer(x))):
        optimizer = torch.optim.SGD([parameter], lr=1e-3)
        for _ in range(200):
            optimizer.zero_grad()
            (-run()).sum().backward()
            optimizer.step()
    assert naive.item() == 1.0
    assert layer.entries.offsets.item() == pytest.approx(0.2, rel=1e-5)
    assert layer.entries.values.item() == pytest.approx(1.2, rel=1e-6)
    assert layer.weight.item() == torch.tensor(1.2).to(torch.bfloat16).item()


def test_a_delta_of_a_bf16_base_keeps_the_fp32_values_and_is_applied_rounded(tmp_path):
    layer = one_entry()
    layer.entries.offsets.data.fill_(1e-3)
    delta = te.load(te.save(te.extract(layer), tmp_path / "bf16.delta"))
    assert delta.linears[""].base_dtype == "bfloat16"
    assert delta.linears[""].values.item() == pytest.approx(1.001, rel=1e-6)
    base = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    base.weight.data.fill_(1.0)
    assert te.apply(base, delta).weight.item() == 1.0


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
def test_training_on_bf16_weights_follows_training_on_fp32_weights(make):
    model = make()
    given = tiny.batch(model)
    support = te.select(model, [given], per_neuron=2)
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        one = te.install(copy.deepcopy(model).to(dtype), support, trainable=[])
        optimizer = torch.optim.SGD(tiny.trained(one), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            logits = tiny.logits(one, as_bf16(given) if dtype == torch.bfloat16 else given)
            (logits.float() - 1).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([layer.entries.offsets.detach() for layer in sparse_layers(one).values()]))
    assert torch.cosine_similarity(*ends, dim=0) > 0.99
    assert (ends[0] - ends[1]).norm() < 0.15 * ends[0].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
def test_autocast_trains_fp32_offsets_on_weights_of_either_dtype(make, dtype):
    model = make().to(dtype)
    twin = copy.deepcopy(model).requires_grad_(True)
    given = tiny.batch(model)
    te.install(model, te.select(make(), [given], per_neuron=2), trainable=[])
    for one in (model, twin):
        with torch.autocast("cpu", torch.bfloat16):
            logits = tiny.logits(one, given if dtype == torch.float32 else as_bf16(given))
        logits.float().square().mean().backward()
    for name, layer in sparse_layers(model).items():
        entries = layer.entries
        dense = linears(twin)[name].adapter.matrix(twin.get_submodule(name).weight.grad)[entries.rows, entries.columns]
        assert entries.offsets.grad.dtype == torch.float32
        assert (entries.offsets.grad - dense.float()).norm() <= 2e-2 * dense.float().norm()
    entries = next(iter(sparse_layers(model).values())).entries
    entries.offsets.data.fill_(1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        tiny.logits(model, given if dtype == torch.float32 else as_bf16(given))
    name = next(iter(sparse_layers(model)))
    stored = linears(model)[name].read(entries.rows, entries.columns)
    assert torch.equal(stored, entries.values.to(dtype))  # autocast never reaches the stored weight


def as_bf16(given):
    """Return images in bf16 and token ids unchanged."""
    return {key: value.bfloat16() if value.is_floating_point() else value for key, value in given.items()}
