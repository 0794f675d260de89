"""A base that is held computes, selects and trains as one with those weights does, and its file is only ever read."""

import copy
import sys

import pytest
import tiny
import tiny_task
import torch
from resident import resident
from tiny import t5, t5_batch
from transformers import AutoModelForSequenceClassification

import taskedge as te
from taskedge.backbone import HOLDS
from taskedge.backbone.linears import candidates, linears
from taskedge.backbone.storage import memory_map as mapping
from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.backbone.storage.set_storage import hold
from taskedge.errors import InputError
from taskedge.forms.recompute import recomputing
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import Support

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
MODELS = {**{name: tiny.MODELS[name] for name in ("bert", "gpt2", "mlp")}, "t5": t5}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def given(model, seed=0):
    return t5_batch(seed) if hasattr(model, "decoder") else tiny.batch(model, seed=seed)


def tiny_batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, len(tiny_task.WORDS) + 4, (4, 6), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1, 0])}


def train(model, of=lambda _, seed: tiny_batch(seed)):
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        tiny.loss(model, of(model, seed)).backward()
        optimizer.step()


def in_double(batch):
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    return {key: in_double(value) for key, value in batch.items()}


def held_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, HeldLayer)}


def dense_twin(held, make):
    """A plain model that holds the weights which the held one stands for."""
    twin = make()
    for name, layer in held_layers(held).items():
        with torch.no_grad():
            twin.get_submodule(name).weight.copy_(layer.weight)
    return twin


@pytest.fixture
def saved(tmp_path):
    return tiny_task.bert(tmp_path / "base", classes=2)


def loaded(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@models
def test_int8_holds_the_linears_of_the_blocks_and_nothing_else(make):
    model = make()
    chosen, before = set(candidates(model)), tiny.state(model)
    parameters, said = sum(p.numel() for p in model.parameters()), []
    assert hold(model, "int8", said.append) is model
    assert held_layers(model).keys() == chosen == candidates(model).keys()
    assert sum(p.numel() for p in model.parameters()) == parameters  # a budget is the same share of it
    state = tiny.state(model)
    for name, tensor in before.items():
        held = name.removesuffix(".weight") in chosen and name.endswith(".weight")
        assert torch.equal(state[name], tensor) != held
        step = tensor.abs().max() / 127
        assert (state[name] - tensor).abs().max() <= (0.5001 * step if held else 0)
    numbers = sum(linears(model)[name].weight.numel() for name in chosen)
    assert said == [
        f"the weights of {len(chosen)} linears are held as int8: {numbers / 1e6:.1f} MB, not {4 * numbers / 1e6:.1f}"
    ]


@models
def test_entries_over_int8_train_as_over_the_dequantised_weights_in_double(make):
    """The oracle: dense autograd in fp64 on a plain model with the dequantised weights."""
    model = hold(make(), "int8")
    twin = dense_twin(model, make).double().requires_grad_(True)
    support = te.select(model, [given(model)], per_neuron=2, **({"linears": ["first"]} if make is tiny.mlp else {}))
    te.install(model, support, trainable=[])
    for one in (model, twin):
        batch = given(one)
        if one is twin:
            batch = in_double(batch)
        tiny.logits(one, batch).square().sum().backward()
    dense = linears(twin)
    assert sparse_layers(model)
    for name, layer in sparse_layers(model).items():
        expected = dense[name].kind.matrix(dense[name].module.weight.grad)[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(layer.entries.offsets.grad.double(), expected, rtol=1e-3, atol=1e-5)


@models
def test_training_over_int8_equals_training_of_the_dequantised_model(make):
    model = hold(make(), "int8")
    twin = dense_twin(model, make)
    learnt = []
    for one in (model, twin):
        te.install(one, te.select(one, [given(one)], budget="2%", rule="taskedge"))
        train(one, given)
        learnt.append(te.extract(one))
    ours, theirs = learnt
    assert ours.linears.keys() == theirs.linears.keys()
    for name, linear in ours.linears.items():
        other = theirs.linears[name]
        assert torch.equal(linear.rows, other.rows)
        assert torch.equal(linear.columns, other.columns)
        torch.testing.assert_close(linear.values, other.values, rtol=1e-4, atol=1e-5)
        assert (linear.base_dtype, other.base_dtype) == ("int8", "float32")
        assert linear.base_digest == other.base_digest  # of the values that both trained on


@pytest.mark.parametrize("how", ["blocks", "inputs"])
def test_recomputation_over_int8_has_the_same_bits(how):
    found = []
    for way in ("none", how):
        model = hold(tiny.bert(dropout=0.2), "int8").train()
        te.install(model, te.select(model, [given(model)], per_neuron=1))
        model.bert.encoder.layer[0].output.dense.entries.offsets.data.fill_(0.01)
        torch.manual_seed(3)
        with recomputing(model, way):
            model(**given(model)).loss.backward()
        found.append([p.grad for p in tiny.trained(model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_what_a_held_base_cannot_do(bert):
    given_ = [tiny.batch(bert)]
    hold(bert, "int8")
    for rule in ("gradient", "fisher", "spt"):
        with pytest.raises(InputError, match="held and only read, so it has no gradient"):
            te.select(bert, given_, rule=rule, budget="2%")
    before, name = tiny.state(bert), next(iter(candidates(bert)))
    spread = Support({}, 5859, low_rank={name: 2})
    with pytest.raises(InputError, match="held and only read, so no low-rank product can go into it"):
        te.install(bert, spread)
    assert tiny.same_bits(tiny.state(bert), before)


def test_mistakes(bert, mlp):
    with pytest.raises(InputError, match="unknown base 'int4'; did you mean 'int8'"):
        hold(bert, "int4")
    before = tiny.state(bert)
    assert tiny.same_bits(tiny.state(hold(bert, HOLDS[0])), before)


@linux
def test_a_model_that_lies_in_no_file_cannot_be_mapped(bert):
    with pytest.raises(InputError, match="no weight of BertForSequenceClassification is mapped from a file"):
        hold(bert, "mapped")


@linux
def test_a_mapped_base_has_the_bits_of_a_loaded_one_and_its_file_is_never_changed(saved):
    content, said, learnt = (saved / "model.safetensors").read_bytes(), [], []
    for how in ("loaded", "mapped"):
        model = loaded(saved)
        support = te.select(model, [tiny_batch()], budget="5%")
        hold(model, how, said.append)
        train(te.install(model, support))
        output = tiny.logits(model, tiny_batch(1)).detach()
        learnt.append((te.extract(model), output, te.fuse(model).state_dict()))
    assert len(said) == 1
    assert said[0].endswith(f"MB of the base are mapped from {saved / 'model.safetensors'}")
    (plain, output, state), (mapped, other_output, other_state) = learnt
    assert torch.equal(output, other_output)
    assert tiny.same_bits(state, other_state)
    for name, linear in plain.linears.items():
        assert torch.equal(linear.values, mapped.linears[name].values)
        assert (linear.base_dtype, linear.base_digest) == (
            mapped.linears[name].base_dtype,
            mapped.linears[name].base_digest,
        )
    assert (saved / "model.safetensors").read_bytes() == content


@linux
def test_what_is_mapped_is_never_written_to_in_training(saved):
    """So that it stays shared: the pages that hold the weights have what the file has, entries lie beside."""
    model = hold(loaded(saved), "mapped")
    train(te.install(model, te.select(model, [tiny_batch()], budget="5%")))
    original = loaded(saved)
    for name, layer in sparse_layers(model).items():
        stored = layer._parameters["weight"]
        assert torch.equal(stored, original.get_submodule(name).weight)
        assert not torch.equal(layer.weight, stored)


def test_a_copy_of_a_held_model(bert):
    hold(bert, "int8")
    twin = copy.deepcopy(bert)
    assert torch.equal(tiny.logits(bert, tiny.batch(bert)), tiny.logits(twin, tiny.batch(bert)))


@linux
def test_a_mapped_base_is_never_in_memory_as_a_whole_while_it_becomes_int8(tmp_path):
    folder = tiny_task.bert(tmp_path / "wide", classes=2, hidden_size=256, intermediate_size=1024)
    file = folder / "model.safetensors"
    model = hold(loaded(folder), "int8")
    assert file.stat().st_size > 6e6
    assert resident(file) < 1000  # kB: the embeddings, and what lies near
    assert not mapping.mapped(p for p in model.parameters() if p.dim() < 2)
    assert tiny.logits(model, tiny_batch()).isfinite().all()


@pytest.mark.parametrize("how", ["int8", "mapped"])
def test_a_model_that_is_held_stays_as_it_is(how, tmp_path):
    tiny_task.bert(tmp_path)
    model = hold(AutoModelForSequenceClassification.from_pretrained(tmp_path), how)
    before = {name: layer.held for name, layer in held_layers(model).items()}
    assert before
    after = {name: layer.held for name, layer in held_layers(hold(model, how)).items()}
    assert {name: held.weight.data_ptr() for name, held in after.items()} == {
        name: held.weight.data_ptr() for name, held in before.items()
    }
