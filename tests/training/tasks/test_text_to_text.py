"""Encoder-decoders: what is learned and generated, gradients of all linears, and bases that are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_task
import torch
import transformers
from tiny_task import WORDS

import taskedge as te
from taskedge.backbone.blocks import blocks, blocks_within
from taskedge.backbone.candidates import candidates
from taskedge.backbone.cost_model import block_table
from taskedge.backbone.label_loss import IGNORED_LABEL as IGNORED
from taskedge.backbone.loading import load_base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.forms.sparse import sparse_layers
from taskedge.training.data.infer_task import infer_task
from taskedge.training.data.table import Table
from taskedge.training.tasks import Columns
from taskedge.training.tasks.text_to_text import TextToText

START, END = 2, 3


def ids(text):
    return [4 + WORDS.index(word) for word in text.split()]


def table(*pairs):
    return Table(Path("x.csv"), [source for source, _ in pairs], [target for _, target in pairs])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base("text-to-text", tiny_task.t5(tmp_path_factory.mktemp("t5") / "t5"))


PAIRS = table(("the film was", "very good"), ("a plot", "bad"), ("never so long a night", "fine"))


def bound(base, data=PAIRS, **more):
    return TextToText.from_table(data, Columns(source="s", target="t")).bind(base, data, 40, **more)


def test_the_target_and_its_end_are_learned(base):
    task = bound(base)
    rows = task.encode(base, PAIRS, 40, str)
    assert rows[0]["input_ids"] == [START, *ids("the film was"), END]
    assert rows[0]["labels"] == [START, *ids("very good"), END]
    assert task.new_tokens == 4
    batch = task.collate(base)(rows)
    assert batch["labels"][1].tolist() == [START, *ids("bad"), END, IGNORED]
    assert batch["attention_mask"].sum(1).tolist() == [5, 4, 7]
    assert "labels" not in task.encode(base, Table(PAIRS.path, PAIRS.texts), 40, str)[0]


def test_cut_texts_are_counted_and_keep_their_end(base):
    said = []
    rows = bound(base).encode(base, PAIRS, 3, said.append)
    assert [row["labels"][-1] for row in rows] == [END] * 3
    assert max(len(row["input_ids"]) for row in rows) == 3
    assert "targets: 1 of 3 rows have more than 3 tokens and are cut at their end: 1 token is lost" in " ".join(said)


def test_the_length_of_targets_survives_in_a_delta(base):
    task = bound(base)
    again = TextToText.from_provenance(Provenance(task="text-to-text", training=task.to_provenance()))
    assert again.bind(base).new_tokens == task.new_tokens
    with pytest.raises(InputError, match="how long its targets are"):
        TextToText.from_provenance(Provenance(task="text-to-text"))


def test_generation_and_measures_do_not_depend_on_the_batch(base):
    task = bound(base)
    rows = task.encode(base, PAIRS, 40, str)
    one, all_at_once = (task.predict(base.model, base, rows, size, str) for size in (1, 3))
    assert one == all_at_once
    for row, answer in zip(rows, one, strict=True):
        greedy = base.model.generate(
            torch.tensor([row["input_ids"]]), max_new_tokens=4, do_sample=False, num_beams=1, eos_token_id=END
        )
        assert answer["target"] == base.tokenizer.decode(greedy[0], skip_special_tokens=True).strip()
    measures = task.evaluate(base.model, base, rows, 3, str)
    batch = task.collate(base)(rows)
    plain = transformers.T5ForConditionalGeneration(base.model.config).eval()
    plain.load_state_dict(base.model.state_dict())
    with torch.no_grad():
        assert measures["loss"] == pytest.approx(float(plain(**batch).loss), rel=1e-5)
    assert {"rows", "loss", "perplexity", "exact_match"} <= measures.keys()


def test_source_and_target_are_found_by_name(tmp_path):
    data = tiny_task.table(tmp_path / "x.csv", [("a", "b")], ("source", "target"))
    found = infer_task(data, Columns())
    assert (found.task, found.columns) == ("text-to-text", Columns(source="source", target="target"))


def test_fp16_is_refused_with_the_reason(tmp_path):
    folder = tiny_task.t5(tmp_path / "t5")
    with pytest.raises(InputError, match=r"exceed the largest fp16 number \(65,504\).*--dtype bf16"):
        load_base("text-to-text", folder, dtype="fp16")
    assert load_base("text-to-text", folder, dtype="bf16").model.dtype == torch.bfloat16


def test_other_bases_are_refused_with_what_they_are_for(tmp_path):
    with pytest.raises(InputError, match="type 'llama' and cannot be used for text-to-text"):
        load_base("text-to-text", tiny_task.llama(tmp_path / "llama"))
    with pytest.raises(InputError, match=r"give this one data for .*text-to-text"):
        load_base("text-generation", tiny_task.t5(tmp_path / "t5"))


def test_entries_of_all_linears_get_the_gradient_of_dense_autograd(base):
    model = copy.deepcopy(base.model).eval().double()
    rows = bound(base).encode(base, PAIRS, 40, str)
    batch = bound(base).collate(base)(rows)
    support = te.select(model, [batch], per_neuron=2)
    assert {name for name in support.linears if "EncDecAttention" in name}
    assert support.linears.keys() == candidates(model).keys()
    dense = transformers.T5ForConditionalGeneration(model.config).double().eval()
    dense.load_state_dict(model.state_dict())
    logits = dense(**batch).logits  # transformers computes the loss of float64 logits in float64 here
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()
    model = te.install(model, support)
    for layer in sparse_layers(model).values():
        layer.entries.offsets = torch.nn.Parameter(layer.entries.offsets.detach().double())
    model(**batch).loss.backward()
    layers = sparse_layers(model)
    assert len(layers) == len(support.linears)
    for name, layer in layers.items():
        expected = dense.get_submodule(name).weight.grad[layer.entries.rows, layer.entries.columns]
        scale = float(expected.abs().max()) or 1.0
        assert float((layer.entries.offsets.grad - expected).abs().max()) <= 1e-9 * max(scale, 1.0), name


def test_blocks_are_those_of_the_encoder_then_of_the_decoder(base):
    names = [block.name for block in blocks(base.model)]
    assert names == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert [block.name for block in blocks_within(base.model, 1)] == ["decoder.block.1"]
    tokens = torch.ones(2, 6, dtype=torch.long)
    found = block_table(base.model, {"input_ids": tokens, "decoder_input_ids": tokens}, 0.001, "t5")
    assert found.layers == (("decoder.block.1",), ("decoder.block.0",), ("encoder.block.1",), ("encoder.block.0",))
    assert all(found.backward_flops > 0)
    assert found.forward_flops[0] > found.forward_flops[3]  # a block of the decoder also has a cross-attention


def test_entries_learn_the_targets(base):
    model = copy.deepcopy(base.model)
    batch = bound(base).collate(base)(bound(base).encode(base, PAIRS, 40, str))
    te.install(model, te.select(model, [batch], per_neuron=8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
