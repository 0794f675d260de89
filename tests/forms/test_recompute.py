"""Recomputed blocks have the same gradients, draw the same dropout, and keep their inputs only."""

from __future__ import annotations

import copy
import weakref

import pytest
import tiny
import torch
from shared_layer_models import agree, albert, random_support
from tiny import t5, t5_batch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import taskedge as te
from taskedge.backbone.blocks import blocks
from taskedge.backbone.label_loss import use_label_loss
from taskedge.backbone.layers import linears
from taskedge.backbone.linear_cross_entropy import chunk_limit
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.errors import InputError
from taskedge.forms.entries import SharedInput
from taskedge.forms.recompute import RECOMPUTE_MODES, recomputing
from taskedge.forms.sparse import sparse_layers
from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.lora import PeftLora

HOWS = pytest.mark.parametrize("how", ["blocks", "inputs"])


def llama(vocabulary=tiny.VOCABULARY):
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, attention_dropout=0.2,
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config)


def gpt2_lm():
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=24, n_embd=16, n_layer=3, n_head=2)  # dropout 0.1
    return _seeded(GPT2LMHeadModel, config)


def bert():
    return tiny.bert(dropout=0.2)


def _seeded(kind, config):
    torch.manual_seed(7)
    return kind(config).eval()


def batch(model, seed=0):
    if isinstance(model, LlamaForCausalLM | GPT2LMHeadModel):
        ids = torch.randint(1, tiny.VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids, "labels": ids}
    return tiny.batch(model, seed=seed)


def gradients(model, given, how="none", seed=3):
    model.train().zero_grad()
    torch.manual_seed(seed)
    with recomputing(model, how):
        loss = model(**given).loss
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def saved(model, given):
    """Return the bytes that autograd saves for the backward pass, the model's own tensors not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**given).loss
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    return total


@HOWS
@pytest.mark.parametrize("step", ["plain", "activation"])
@pytest.mark.parametrize("make", [bert, tiny.gpt2, tiny.vit, llama, gpt2_lm])
def test_the_same_bits_as_the_plain_run_with_dropout(make, step, how):
    torch.set_num_threads(1)
    model = make()
    given = batch(model)
    te.install(model, te.select(model, [given], per_neuron=2), step=step)
    loss, plain = gradients(model, given)
    for _ in range(2):  # nothing is left over from the first
        again, recomputed = gradients(model, given, how)
        assert torch.equal(loss, again)
        assert tiny.same_bits(plain, recomputed)
    assert tiny.same_bits(plain, gradients(model, given)[1])


@HOWS
def test_after_the_values_moved_and_the_stored_weights_did_not_yet(how):
    model, given = bert(), tiny.batch(bert())
    te.install(model, te.select(model, [given], per_neuron=2)).to("cpu")  # which forgets what was written
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=1e-2)
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(tiny.trained(twin), lr=1e-2)
    for step in range(3):
        _, plain = gradients(twin, given, seed=step)
        _, recomputed = gradients(model, given, how, seed=step)
        assert tiny.same_bits(plain, recomputed)
        optimizer.step(), other.step()


@HOWS
@pytest.mark.parametrize("form", ["sparse_lora", "sparse_plus_low_rank", "spt", "lora"])
def test_other_forms(form, how):
    torch.set_num_threads(1)
    model, given = bert(), tiny.batch(bert())
    if form == "lora":
        pytest.importorskip("peft")
        support = te.select(model, rule="random", per_neuron=1)
        linears = dict.fromkeys(support.linears, 2)
        PeftLora(model, te.Support({}, support.model_parameters, low_rank=linears), ["classifier.bias"], None, 0)
    elif form == "spt":
        te.install(model, te.select(model, [given], budget="5%", rule="spt", rank=1))
    else:
        te.install(model, te.select(model, [given], per_neuron=2), form=form, rank=2)
    _, plain = gradients(model, given)
    assert tiny.same_bits(plain, gradients(model, given, how)[1])


@HOWS
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_against_dense_autograd_in_double_precision(make, how):
    model = make().double()
    twin = copy.deepcopy(model)
    given = tiny.batch(model)
    te.install(model, random_support(model), trainable=[])
    with recomputing(model, how):
        agree(model, twin, given)


@HOWS
def test_inputs_that_several_blocks_share(how):
    """All blocks of the decoder read the encoder's output for keys and values, and gather its columns once."""
    model = t5(tie=False).double()
    twin = copy.deepcopy(model)
    te.install(model, random_support(model), trainable=[])
    with recomputing(model, how):
        agree(model, twin, t5_batch())
    assert all(layer.entries.shared_input._gathered is None for layer in sparse_layers(model).values())


@pytest.mark.parametrize("how", RECOMPUTE_MODES)
def test_no_gathered_columns_survive(monkeypatch, how):
    """Only columns that the backward pass needs survive a forward pass, and none survive the backward pass."""
    seen = []
    model, given = bert(), tiny.batch(bert())
    te.install(model, te.select(model, [given], per_neuron=2))
    gather = SharedInput.gather

    def watched(self, x, dtype):
        columns = gather(self, x, dtype)
        seen.append(weakref.ref(columns))
        return columns

    def alive():
        return len({id(columns()) for columns in seen if columns() is not None})

    monkeypatch.setattr(SharedInput, "gather", watched)
    model.train()
    inputs = {id(layer.entries.shared_input) for layer in sparse_layers(model).values()}
    at_last_block = {
        id(layer.entries.shared_input)
        for name, layer in sparse_layers(model).items()
        if name.startswith(blocks(model)[-1].name)
    }
    with recomputing(model, how):
        loss = model(**given).loss
        assert alive() == {"none": len(inputs), "blocks": len(at_last_block), "inputs": len(at_last_block)}[how]
        loss.backward()
        del loss
    assert alive() == 0


def test_blocks_keep_their_inputs_only():
    model = _seeded(GPT2LMHeadModel, GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=6, n_head=2))
    given = batch(model)
    te.install(model, te.select(model, [given], per_neuron=1), trainable=["transformer.wpe.weight"])
    model.train()
    plain = saved(model, given)
    with recomputing(model, "blocks"):
        less = saved(model, given)
    one = 4 * 6 * 16 * 4  # rows, tokens, width, bytes
    per_block = (plain - less) / 5  # the block nearest the output is left out
    assert per_block > 15 * one
    assert less < plain - 5 * 15 * one


def test_below_the_deepest_trained_entry_nothing_is_kept_or_recomputed():
    model = llama()
    given = batch(model)
    te.install(model, te.select(model, [given], per_neuron=1, depth=1), trainable=[])
    ran = []
    for block in blocks(model):
        block.module.register_forward_pre_hook(lambda module, given, depth=block.depth: ran.append(depth))
        block.module.self_attn.register_forward_pre_hook(lambda module, given, depth=block.depth: ran.append(-depth))
    gradients(model, given, "blocks")
    assert ran == [3, -3, 2, -2, 1, -1]


def large_vocabulary(labels=6, storage="resident"):
    """Return a model whose logits take more than its blocks, and 4 rows of which the last tokens have labels."""
    torch.set_num_threads(1)
    model = llama(vocabulary=4000)
    assert use_label_loss(model)
    set_weight_storage(model, storage)
    given = batch(model)
    given["labels"] = given["labels"].clone()
    given["labels"][:, : 6 - labels] = -100
    return te.install(model, te.select(model, [given], per_neuron=2)), given


def runs_of_last_block(model, given, how="blocks"):
    """Return how often the block nearest the output runs in a step."""
    ran = []
    first = next(iter(linears(blocks(model)[-1].module).values())).module
    handle = first.register_forward_pre_hook(lambda module, given: ran.append(1))
    gradients(model, given, how)
    handle.remove()
    return len(ran)


@HOWS
@pytest.mark.parametrize("storage", ["resident", "int8", "int4"])
def test_the_last_block_is_recomputed_where_the_logits_are_the_peak(storage, how):
    model, given = large_vocabulary(storage=storage)
    loss, plain = gradients(model, given)
    again, recomputed = gradients(model, given, how)
    assert torch.equal(loss, again)
    assert tiny.same_bits(plain, recomputed)
    assert runs_of_last_block(model, given, how) == 2


def test_recomputing_the_last_block_too_lowers_the_peak_of_a_large_vocabulary(monkeypatch):
    model, given = large_vocabulary()
    gradients(model, given, "blocks")  # so that gradients exist

    def peak():
        with LiveBytes() as live:
            gradients(model, given, "blocks")
        return live.peak

    with_last = peak()
    monkeypatch.setattr("taskedge.forms.recompute._LastBlock.is_below_loss", lambda self, inputs: False)
    one = 4 * 6 * 16 * 4  # rows, tokens, width, bytes
    assert peak() - with_last > 5 * one


def test_the_last_block_is_kept_where_logits_take_less():
    model, given = large_vocabulary(labels=0)
    assert runs_of_last_block(model, given) == 1
    few = llama(vocabulary=12)
    assert use_label_loss(few)
    given = {"input_ids": given["input_ids"] % 12, "labels": given["input_ids"] % 12}
    te.install(few, te.select(few, [given], per_neuron=1))
    assert runs_of_last_block(few, given) == 1


def test_a_measurement_with_small_chunks_recomputes_what_the_run_does():
    model, given = large_vocabulary()
    with chunk_limit(1):
        assert runs_of_last_block(model, given) == 2


def test_the_last_block_of_an_encoder_decoder_with_a_large_vocabulary():
    torch.set_num_threads(1)
    model, given = t5(tie=False), t5_batch()
    model.resize_token_embeddings(400, mean_resizing=False)
    assert use_label_loss(model)
    te.install(model, te.select(model, [given], per_neuron=1))
    _, plain = gradients(model, given)
    assert tiny.same_bits(plain, gradients(model, given, "blocks")[1])
    assert runs_of_last_block(model, given) == 2


def test_autocast_recomputes_in_bfloat16():
    torch.set_num_threads(1)
    model, given = bert(), tiny.batch(bert())
    te.install(model, te.select(model, [given], per_neuron=2))
    with torch.autocast("cpu", torch.bfloat16):
        _, plain = gradients(model, given)
        for how in ("blocks", "inputs"):
            assert tiny.same_bits(plain, gradients(model, given, how)[1])


@HOWS
def test_the_model_is_restored(how):
    model, given = llama(), batch(llama())
    quiet = model.eval()(**given).logits
    own = blocks(model)[0].module
    own.forward = own.forward  # someone else's
    theirs = own.__dict__["forward"]
    with recomputing(model, how):
        with torch.no_grad():
            assert model(**given, use_cache=True).past_key_values is not None
        with pytest.raises(InputError, match="recomputes its blocks already"), recomputing(model, how):
            pass
    assert own.__dict__["forward"] is theirs
    assert all("forward" not in block.module.__dict__ for block in blocks(model)[1:])
    assert not model._forward_pre_hooks
    assert torch.equal(model(**given).logits, quiet)


def test_models_without_blocks_and_unknown_modes_are_refused():
    for model in (albert(), tiny.mlp()):
        with pytest.raises(InputError, match="has no repeated blocks to recompute"), recomputing(model):
            pass
    with pytest.raises(InputError, match=r"unknown recompute 'block'.*blocks"), recomputing(tiny.bert(), "block"):
        pass
