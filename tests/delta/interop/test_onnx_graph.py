"""Graphs of every kind compute what torch does, for other batches and lengths than the traced ones."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from tiny_kinds import base_of

import taskedge as te
from taskedge.delta.interop.export import Source
from taskedge.delta.interop.onnx_graph import run_graph, session, trace, write_task
from taskedge.delta.interop.self_check import logits_of
from taskedge.errors import InputError

pytest.importorskip("onnxruntime")

FAST = [("text-classification", "bert"), ("text-generation", "llama"), ("image-classification", "vit")]
SLOW = [("text-classification", kind) for kind in ("gpt2", "llama", "modernbert", "roberta", "deberta-v2", "xlnet")]
SLOW += [("text-generation", kind) for kind in ("gpt2", "qwen2", "gemma")]


def batches(model, tokens):
    config = model.config
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(rows, 3, 8, 8)} for rows in (1, 3)]
    made = []
    for rows, length in ((1, 1), (3, tokens), (5, 4)):
        ids = torch.randint(4, config.vocab_size, (rows, length))
        mask = torch.ones_like(ids)
        for row in range(1, rows):
            mask[row, max(1, length - row) :] = 0
        made.append({"input_ids": ids.masked_fill(mask == 0, config.pad_token_id or 0), "attention_mask": mask})
    return made


def check(task, kind, tmp_path):
    torch.manual_seed(1)
    base = base_of(kind, task, tmp_path / "base")
    source = Source(base.model, te.Delta({}), processor=base.tokenizer)
    names = trace(source, tmp_path / "g.onnx")
    run = run_graph(session(tmp_path / "g.onnx"))
    for batch in batches(base.model, 17):
        expected, found = logits_of(base.model, batch), run(batch)
        keep = batch["attention_mask"].bool() if expected.dim() == 3 else slice(None)
        assert (found - expected)[keep].abs().max() <= 1e-4
    assert set(names) == set(batch)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), FAST + SLOW)
def test_other_sizes_than_the_traced_ones(task, kind, tmp_path):
    check(task, kind, tmp_path)


def test_a_bf16_base_becomes_fp32_and_stays_bf16(tmp_path):
    model = tiny.vit().bfloat16().train()
    before = tiny.state(model)
    trace(Source(model, te.Delta({})), tmp_path / "g.onnx")
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    found = run_graph(session(tmp_path / "g.onnx"))(batch)
    assert (found - logits_of(model.float(), batch)).abs().max() <= 1e-4
    assert tiny.same_bits(model.bfloat16().state_dict(), before)
    assert model.training


@pytest.mark.parametrize("make", [tiny.mlp, tiny.t5], ids=["mlp", "t5"])
def test_what_has_no_graph_is_refused(make, tmp_path):
    with pytest.raises(InputError, match=r"has no ONNX export: export with --to merged"):
        trace(Source(make(), te.Delta({})), tmp_path / "g.onnx")


def test_the_task_file_has_what_a_program_needs(tmp_path):
    provenance = te.delta.delta.Provenance(task="text-classification", labels=("a", "b"), training={"max_length": 64})
    write_task(Source(tiny.bert(), te.Delta({}, provenance=provenance), "org/base"), tmp_path, ["input_ids"], x=1)
    assert json.loads((tmp_path / "task.json").read_text()) == {
        "format": "taskedge-onnx/1", "task": "text-classification", "labels": ["a", "b"], "inputs": ["input_ids"],
        "max_length": 64, "pad_token_id": 0, "eos_token_id": None, "base": "org/base", "x": 1,
    }  # fmt: skip
