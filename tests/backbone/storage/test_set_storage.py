"""A base with another weight storage computes, selects and trains the same, and its file is only ever read."""

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
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.backbone.storage import WEIGHT_STORAGE, current_name, memory_map
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError
from taskedge.forms.recompute import recomputing
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import Support

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files")
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


def frozen_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, FrozenWeightLayer)}


def dense_twin(frozen, make):
    """Return a plain model with the weights that the frozen one computes with."""
    twin = make()
    for name, layer in frozen_layers(frozen).items():
        with torch.no_grad():
            twin.get_submodule(name).weight.copy_(layer.weight)
    return twin


@pytest.fixture
def saved(tmp_path):
    return tiny_task.bert(tmp_path / "base", classes=2)


def loaded(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


@models
def test_int8_converts_the_linears_of_the_blocks_and_nothing_else(make):
    model = make()
    chosen, before = set(candidates(model)), tiny.state(model)
    parameters, said = sum(p.numel() for p in model.parameters()), []
    assert set_weight_storage(model, "int8", said.append) is model
    assert frozen_layers(model).keys() == chosen == candidates(model).keys()
    assert sum(p.numel() for p in model.parameters()) == parameters  # a budget is the same share of it
    state = tiny.state(model)
    for name, tensor in before.items():
        held = name.removesuffix(".weight") in chosen and name.endswith(".weight")
        assert torch.equal(state[name], tensor) != held
        step = tensor.abs().max() / 127
        assert (state[name] - tensor).abs().max() <= (0.5001 * step if held else 0)
    numbers = sum(linears(model)[name].weight.numel() for name in chosen)
    assert said == [
        f"the weights of {len(chosen)} linears are stored as int8: {numbers / 1e6:.1f} MB, not {4 * numbers / 1e6:.1f}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["int8", "int4"])
@models
def test_entries_over_codes_train_as_over_the_dequantized_weights_in_double(make, coding):
    """The oracle: dense autograd in fp64 on a plain model with the dequantized weights."""
    model = set_weight_storage(make(), coding)
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
        expected = dense[name].adapter.matrix(dense[name].module.weight.grad)[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(layer.entries.offsets.grad.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@models
def test_training_over_int8_equals_training_of_the_dequantized_model(make):
    model = set_weight_storage(make(), "int8")
    twin = dense_twin(model, make)
    learned = []
    for one in (model, twin):
        te.install(one, te.select(one, [given(one)], budget="2%", rule="taskedge"))
        train(one, given)
        learned.append(te.extract(one))
    ours, theirs = learned
    assert ours.linears.keys() == theirs.linears.keys()
    for name, linear in ours.linears.items():
        other = theirs.linears[name]
        assert torch.equal(linear.rows, other.rows)
        assert torch.equal(linear.columns, other.columns)
        torch.testing.assert_close(linear.values, other.values, rtol=1e-4, atol=1e-5)
        assert (linear.base_dtype, other.base_dtype) == ("int8", "float32")
        assert linear.base_digest == other.base_digest  # of the values that both trained on


@pytest.mark.slow
@pytest.mark.parametrize("how", ["blocks", "inputs"])
def test_recomputation_over_int8_has_the_same_bits(how):
    found = []
    for way in ("none", how):
        model = set_weight_storage(tiny.bert(dropout=0.2), "int8").train()
        te.install(model, te.select(model, [given(model)], per_neuron=1))
        model.bert.encoder.layer[0].output.dense.entries.offsets.data.fill_(0.01)
        torch.manual_seed(3)
        with recomputing(model, way):
            model(**given(model)).loss.backward()
        found.append([p.grad for p in tiny.trained(model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_read_only_base_is_refused_where_weights_are_written_or_have_gradients(bert):
    given_ = [tiny.batch(bert)]
    set_weight_storage(bert, "int8")
    for rule in ("gradient", "fisher", "spt"):
        with pytest.raises(InputError, match=r"read-only \(coded or mapped from a file\), so it has no gradient"):
            te.select(bert, given_, rule=rule, budget="2%")
    before, name = tiny.state(bert), next(iter(candidates(bert)))
    spread = Support({}, 5859, low_rank={name: 2})
    with pytest.raises(InputError, match="so no low-rank product can go into it"):
        te.install(bert, spread)
    assert tiny.same_bits(tiny.state(bert), before)


def test_an_unknown_storage_and_one_that_does_nothing(bert, mlp):
    with pytest.raises(InputError, match="unknown weight storage 'int5'; did you mean 'int"):
        set_weight_storage(bert, "int5")
    before = tiny.state(bert)
    assert tiny.same_bits(tiny.state(set_weight_storage(bert, WEIGHT_STORAGE[0])), before)


@linux
def test_a_model_that_lies_in_no_file_cannot_be_mapped(bert):
    with pytest.raises(InputError, match="no weight of BertForSequenceClassification is mapped from a file"):
        set_weight_storage(bert, "mmap")


@pytest.mark.slow
@linux
def test_a_mapped_base_has_the_bits_of_a_resident_one_and_its_file_is_never_changed(saved):
    content, said, learned = (saved / "model.safetensors").read_bytes(), [], []
    for how in ("resident", "mmap"):
        model = loaded(saved)
        support = te.select(model, [tiny_batch()], budget="5%")
        set_weight_storage(model, how, said.append)
        train(te.install(model, support))
        output = tiny.logits(model, tiny_batch(1)).detach()
        learned.append((te.extract(model), output, te.fuse(model).state_dict()))
    assert len(said) == 1
    assert said[0].endswith(f"MB of the base are mapped from {saved / 'model.safetensors'}")
    (plain, output, state), (mapped, other_output, other_state) = learned
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
def test_mapped_weights_are_never_written_to_in_training(saved):
    """The pages of the weights keep the content of the file and stay shared; entries lie beside them."""
    model = set_weight_storage(loaded(saved), "mmap")
    train(te.install(model, te.select(model, [tiny_batch()], budget="5%")))
    original = loaded(saved)
    for name, layer in sparse_layers(model).items():
        stored = layer._parameters["weight"]
        assert torch.equal(stored, original.get_submodule(name).weight)
        assert not torch.equal(layer.weight, stored)


def test_a_copy_of_a_frozen_model(bert):
    set_weight_storage(bert, "int8")
    twin = copy.deepcopy(bert)
    assert torch.equal(tiny.logits(bert, tiny.batch(bert)), tiny.logits(twin, tiny.batch(bert)))


@linux
def test_a_mapped_base_is_never_in_memory_as_a_whole_while_it_becomes_int8(tmp_path):
    folder = tiny_task.bert(tmp_path / "wide", classes=2, hidden_size=256, intermediate_size=1024)
    file = folder / "model.safetensors"
    model = set_weight_storage(loaded(folder), "int8")
    assert file.stat().st_size > 6e6
    assert resident(file) < 1000  # kB: the embeddings, and what lies near
    assert not memory_map.mapped_tensors(p for p in model.parameters() if p.dim() < 2)
    assert tiny.logits(model, tiny_batch()).isfinite().all()


@pytest.mark.parametrize("how", ["int8", "mmap"])
def test_a_model_is_converted_once(how, tmp_path):
    tiny_task.bert(tmp_path)
    model = set_weight_storage(AutoModelForSequenceClassification.from_pretrained(tmp_path), how)
    before = {name: layer.frozen_weight for name, layer in frozen_layers(model).items()}
    assert before
    after = {name: layer.frozen_weight for name, layer in frozen_layers(set_weight_storage(model, how)).items()}
    assert {name: frozen.weight.data_ptr() for name, frozen in after.items()} == {
        name: frozen.weight.data_ptr() for name, frozen in before.items()
    }


def test_old_names_of_weight_storage_are_understood():
    """Files written before the renaming say ``loaded`` and ``mapped``."""
    assert [current_name(name) for name in ("loaded", "mapped", "int8", "int4")] == list(WEIGHT_STORAGE)
    assert [current_name(name) for name in WEIGHT_STORAGE] == list(WEIGHT_STORAGE)
