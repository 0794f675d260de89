"""The gate on entries: gradients of dense autograd; a closed linear costs no columns, no gradient and no bytes."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError
from taskedge.forms.gated_entries import GatedEntries, keep_open_columns, set_gates
from taskedge.forms.sparse import sparse_layers
from taskedge.forms.taps import layer_gates
from taskedge.profiling.tensor_memory import LiveBytes

pytestmark = pytest.mark.usefixtures("gather_on_tiny_layers")


def gated(model, **more):
    support = te.select(model, per_neuron=2, rule="random", seed=4)
    return te.install(model, support, form="sparse_taps", **more)


def close(model, names):
    for name in names:
        layer_gates(model)[name].score.data.fill_(0.05)
    keep_open_columns(model)


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_gradients_are_those_of_dense_autograd(make):
    model, plain = gated(make().double()), make().double()
    layers = sparse_layers(model)
    for layer in layers.values():
        layer.entries.offsets.data = 0.1 * torch.randn(len(layer.entries.offsets), dtype=torch.float64)
        layer.entries.layer_gate.score.data = layer.entries.layer_gate.score.data.double()
    batch = tiny.batch(model)
    tiny.logits(model, batch).square().sum().backward()
    with torch.no_grad():
        for name, layer in layers.items():
            plain.get_submodule(name).weight.copy_(layer.weight)
    tiny.logits(plain, batch).square().sum().backward()
    for name, layer in layers.items():
        entries, weight = layer.entries, plain.get_submodule(name).weight
        dense = weight.grad[entries.adapter.weight_index(entries.rows, entries.columns)]
        assert float((entries.offsets.grad - dense).abs().max()) <= 1e-9
        inner = float((dense * entries.offsets.detach()).sum())
        assert abs(float(entries.layer_gate.score.grad) - inner) <= 1e-9


def test_open_gates_train_like_the_sparse_form_bit_for_bit():
    def offsets(form):
        model = tiny.bert()
        te.install(model, te.select(model, per_neuron=2, rule="random", seed=4), form=form, trainable=[])
        parameters = [layer.entries.offsets for layer in sparse_layers(model).values()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        for step in range(4):
            optimizer.zero_grad()
            tiny.loss(model, tiny.batch(model, seed=step)).backward()
            optimizer.step()
        return parameters

    for one, other in zip(offsets("sparse"), offsets("sparse_taps"), strict=True):
        assert torch.equal(tiny.bits(one), tiny.bits(other))


def test_a_closed_linear_is_the_base_and_costs_no_gradient_columns_or_bytes(tmp_path):
    model = tiny.train(gated(tiny.bert()))
    set_gates(model, 0.1, 1e-3)
    for gate in layer_gates(model).values():
        gate.score.data.fill_(0.15)
    names = list(sparse_layers(model))
    whole = te.save(te.extract(model), tmp_path / "whole.safetensors").stat().st_size
    saved = []
    for closed in ([], names[:3], names):  # query, key and value of the first block read one input
        close(model, closed)
        with LiveBytes() as live:
            loss = tiny.loss(model, tiny.batch(model))
            saved.append(live.live)
        loss.backward()
        model.zero_grad()
    assert saved[0] > saved[1] > saved[2]
    for gate in list(layer_gates(model).values())[3:]:
        gate.score.data.fill_(0.15)
    delta = te.extract(model)
    assert list(delta.linears) == names[3:]
    assert te.save(delta, tmp_path / "part.safetensors").stat().st_size < whole
    fused = te.fuse(model)
    for name in names[:3]:
        assert torch.equal(fused.get_submodule(name).weight, tiny.bert().get_submodule(name).weight)


def test_readers_of_one_input_keep_the_columns_of_the_open_ones():
    model = tiny.bert()
    support = te.select(model, [tiny.batch(model)], per_neuron=2)  # batches tell which linears share an input
    te.install(model, support, form="sparse_taps")
    names = list(sparse_layers(model))
    entries = [sparse_layers(model)[name].entries for name in names[:3]]
    assert entries[0].shared_input is entries[1].shared_input is entries[2].shared_input
    close(model, names[:2])
    assert torch.equal(entries[0].shared_input.columns, torch.unique(entries[2].columns))
    before = entries[2].offsets.detach().clone()
    tiny.train(model, steps=1)
    assert not torch.equal(entries[2].offsets, before)
    assert not entries[0].offsets.detach().any()


def test_a_threshold_is_set_on_every_gate(bert):
    gated(bert)
    set_gates(bert, 0.12, 5e-3)
    assert {(gate.threshold, gate.rate) for gate in layer_gates(bert).values()} == {(0.12, 5e-3)}
    assert all(isinstance(layer.entries, GatedEntries) for layer in sparse_layers(bert).values())
    with pytest.raises(InputError, match="no gates on entries"):
        set_gates(tiny.bert(), 0.1, 1e-3)
