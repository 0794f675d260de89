"""Layers that run several times in a forward pass, tied weights and inputs by name are trained correctly or refused."""

import copy
import gc
import weakref
from functools import partial

import pytest
import tiny
import torch
from shared_layer_models import agree, albert, random_support
from tiny import t5, t5_batch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AlbertForSequenceClassification,
    GPT2LMHeadModel,
)

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.cost_model import block_table
from taskedge.backbone.label_loss import use_label_loss
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.entries import SharedInput
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.statistics import GRADIENTS, INPUTS, measure

LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0."


def checkpointed(model, reentrant):
    """Make the model recompute its layers in the backward pass; transformers does it for all models but ALBERT."""
    if isinstance(model, AlbertForSequenceClassification):
        layer = model.get_submodule(LAYER[:-1])
        forward = layer.forward
        layer.forward = lambda *given, **named: checkpoint(partial(forward, **named), *given, use_reentrant=reentrant)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model


def first_norm(model):
    """Return a parameter whose training makes gradients flow from the first layer on, as reentrant checkpoints need."""
    return next(name for name, _ in model.named_parameters() if name.endswith((".LayerNorm.bias", "wpe.weight")))


MODES = pytest.mark.parametrize("checkpoints", [None, False, True], ids=["plain", "checkpointed", "reentrant"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@MODES
@pytest.mark.parametrize("make", [albert, tiny.bert, tiny.gpt2])
def test_gradients_with_and_without_checkpoints(make, checkpoints):
    model = make().double().train()
    twin = copy.deepcopy(model)
    batch = tiny.batch(model)
    te.install(model, random_support(model), trainable=[first_norm(model)])
    if checkpoints is not None:
        checkpointed(model, checkpoints)
    agree(model, twin, batch)


def test_all_layers_of_albert():
    """Entries in the embeddings, in the layer between them and the blocks, and in the head."""
    model = albert().double()
    twin = copy.deepcopy(model)
    te.install(model, random_support(model, ["*"]), trainable=[])
    assert any("word_embeddings" in name for name in sparse_layers(model))
    agree(model, twin, tiny.batch(model))


def test_statistics_of_albert_count_every_use():
    model = albert(layers=3)
    batches = [tiny.batch(model, seed=seed) for seed in range(2)]
    layers = candidates(model)
    found = measure(model, layers, batches, {INPUTS, GRADIENTS})
    seen = {name: [] for name in layers}
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
    tokens = 0
    for batch in batches:
        model(**batch).loss.backward()
        tokens += int(batch["attention_mask"].sum())
    mask = torch.stack([batch["attention_mask"] for batch in batches]).bool()
    for name, statistics in found.items():
        uses = len(seen[name]) // len(batches)
        assert uses == (3 if name.startswith(LAYER) else 1)
        if not name.endswith("pooler"):
            kept = [x[mask[place // uses]] for place, x in enumerate(seen[name])]
            direct = torch.cat(kept).double().square().sum(0)
            torch.testing.assert_close(statistics.input_squares, direct, rtol=1e-5, atol=1e-9)
            assert statistics.tokens == uses * tokens
        gradient = model.get_submodule(name).weight.grad
        torch.testing.assert_close(statistics.gradient, gradient, rtol=1e-4, atol=1e-7)


def test_query_key_and_value_of_albert_share_their_input_at_every_use(monkeypatch):
    model = albert(layers=3)
    batch = tiny.batch(model)
    te.install(model, te.select(model, [batch], per_neuron=1))
    names = [f"{LAYER}attention.{part}" for part in ("q_proj", "query")]
    query = next(name for name in names if name in sparse_layers(model))
    shared = sparse_layers(model)[query].entries.shared_input
    gathered = []
    gather = type(shared._adapter).gather
    monkeypatch.setattr(type(shared._adapter), "gather", lambda *given: gathered.append(given[2]) or gather(*given))
    loss = model(**batch).loss
    assert sum(columns is shared.columns for columns in gathered) == 3  # not 9
    loss.backward()
    for layer in sparse_layers(model).values():
        assert layer.entries.shared_input._gathered is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@MODES
@pytest.mark.parametrize("make", [albert, tiny.bert, tiny.gpt2])
def test_no_gathered_columns_outlive_a_step(make, checkpoints, monkeypatch):
    model, gathered = make().train(), []
    batch = tiny.batch(model)
    te.install(model, te.select(model, [batch], per_neuron=1), trainable=[first_norm(model)])
    if checkpoints is not None:
        checkpointed(model, checkpoints)
    gather = SharedInput.gather

    def watched(self, x, dtype):
        columns = gather(self, x, dtype)
        gathered.append(weakref.ref(columns))
        return columns

    monkeypatch.setattr(SharedInput, "gather", watched)
    model(**batch).loss.backward()
    gc.collect()
    assert gathered
    assert not [columns for columns in gathered if columns() is not None]


def test_albert_from_selection_to_fuse(tmp_path):
    model = albert()
    batch = tiny.batch(model)
    base = copy.deepcopy(model)
    te.install(model, te.select(model, [batch], per_neuron=1))
    tiny.train(model)
    trained = tiny.logits(model, batch)
    delta = te.load(te.save(te.extract(model), tmp_path / "albert.delta"))
    other = te.apply(copy.deepcopy(base), delta)
    assert torch.equal(tiny.logits(other, batch), trained)
    assert torch.equal(tiny.logits(te.fuse(model), batch), trained)
    assert tiny.same_bits(te.revert(other).state_dict(), base.state_dict())


# -- tied weights ----------------------------------------------------------------------------------------------------


def test_the_tied_embedding_of_a_language_model_is_refused_and_its_blocks_train():
    config = tiny.gpt2().config
    model = GPT2LMHeadModel(config).double().eval()
    for name in ("transformer.wte", "lm_head"):
        with pytest.raises(InputError, match=f"'{name}' cannot carry entries: its weight is tied"):
            candidates(model, [name])
    assert "transformer.wte" not in candidates(model, ["*"])
    twin = copy.deepcopy(model)
    batch = tiny.batch(model)
    batch["labels"] = batch["input_ids"]
    te.install(model, random_support(model, ["*"]), trainable=[])
    agree(model, twin, batch)


def test_the_shared_embedding_of_an_encoder_decoder():
    """An embedding tied to the head is refused; an untied one is one layer that encoder and decoder both call."""
    tied = t5()
    assert not {"shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"} & candidates(tied, ["*"]).keys()
    with pytest.raises(InputError, match="'shared' cannot carry entries: its weight is tied"):
        candidates(tied, ["shared"])
    twin = copy.deepcopy(tied.double())
    te.install(tied, random_support(tied), trainable=[])
    agree(tied, twin, t5_batch())


def test_entries_of_an_encoder_decoder_have_the_gradients_of_dense_autograd():
    """All linears, cross-attention included, with padding, sides of two lengths and the loss of labeled positions."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, tiny.VOCABULARY, (3, 7), generator=generator)
    labels = torch.randint(1, tiny.VOCABULARY, (3, 4), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:], ids[1, 5:], labels[2, 2:] = 0, 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model = t5().double()
    dense = copy.deepcopy(model).requires_grad_(True)
    dense(**batch).loss.backward()  # of transformers
    assert use_label_loss(model, lambda _: None)
    support = te.select(model, [batch], per_neuron=2)
    te.install(model, support, trainable=[])
    layers = sparse_layers(model)
    for layer in layers.values():
        layer.entries.offsets.data = layer.entries.offsets.data.double()  # fp32 otherwise
    model(**batch).loss.backward()
    assert sum("EncDecAttention" in name for name in layers) == 2 * 4
    assert layers.keys() == {name for name in linears(model) if ".layer." in name and "relative" not in name}
    for name, layer in layers.items():
        expected = dense.get_submodule(name).weight.grad[layer.entries.rows, layer.entries.columns]
        assert float((layer.entries.offsets.grad - expected).norm()) <= 1e-9 * float(expected.norm())


def test_layers_that_are_one_module_under_several_names_train_once():
    class Shared(nn.Module):
        """An encoder and a decoder that share one embedding module, as T5 does."""

        def __init__(self):
            super().__init__()
            self.shared = nn.Embedding(9, 4)
            self.encoder, self.decoder = nn.Module(), nn.Module()
            self.encoder.embed = self.decoder.embed = self.shared
            self.out = nn.Linear(4, 2)

        def forward(self, ids, others):
            return self.out(self.encoder.embed(ids).sum(1) * self.decoder.embed(others).sum(1))

    model = Shared().double()
    twin = copy.deepcopy(model)
    given = torch.randint(0, 9, (3, 4)), torch.randint(0, 9, (3, 5))
    support = te.select(model, [given], budget="50%", rule="random", linears=["*"])
    assert list(support.linears) == ["shared", "out"]
    te.install(model, support, trainable=[])
    for one in (model, twin):
        one(*given).square().sum().backward()
    for name, layer in sparse_layers(model).items():
        dense = linears(twin)[name]
        gradient = dense.adapter.matrix(dense.module.weight.grad)[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(layer.entries.offsets.grad, gradient.float(), rtol=1e-6, atol=1e-12)


# -- inputs given by name --------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Two blocks whose linears take their input by name, the second twice and with different inputs."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            hidden = torch.tanh(self.once(input=x))
            return self.twice(input=hidden) + self.twice(input=x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_inputs_by_name_and_twice_with_different_ones():
    model = Named().double()
    twin = copy.deepcopy(model)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    support = te.select(model, [x], per_neuron=2)
    assert all(chosen.shared_input == name for name, chosen in support.linears.items())
    te.install(model, support)
    for one in (model, twin):
        one(x).square().sum().backward()
    for name, layer in sparse_layers(model).items():
        gradient = twin.get_submodule(name).weight.grad[layer.entries.rows, layer.entries.columns]
        torch.testing.assert_close(layer.entries.offsets.grad, gradient.float(), rtol=1e-6, atol=1e-12)


def test_costs_of_a_model_that_gives_inputs_by_name():
    table = block_table(Named(), {"x": torch.randn(2, 3, 4)}, 0.1, "named")
    assert len(table) == 2
    assert (table.forward_flops == 3 * 2 * 16).all()
