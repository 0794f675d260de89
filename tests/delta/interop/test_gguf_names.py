"""Names and row order of llama.cpp; the runtime itself is in test_gguf_lora.py."""

from __future__ import annotations

import pytest
import tiny
import tiny_gguf
import torch

from taskedge.backbone.candidates import candidates
from taskedge.delta.interop.gguf_names import ARCHITECTURES, gguf_names
from taskedge.errors import InputError

pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", list(tiny_gguf.CONFIGS))
def test_every_linear_has_a_name_of_its_own(kind):
    model = tiny_gguf.model(kind)
    names = gguf_names(model, candidates(model))
    assert len(set(names.names.values())) == len(candidates(model)) == 14
    assert names.names["model.layers.1.self_attn.q_proj"] == "blk.1.attn_q.weight"
    assert bool(names.heads) == (kind == "llama")


def test_the_order_of_rows_is_undone():
    names = gguf_names(tiny_gguf.model("llama"), ["model.layers.0.self_attn.k_proj", "model.layers.0.mlp.up_proj"])
    rows = torch.arange(16.0)[:, None].expand(16, 3)
    there = names.to_gguf("model.layers.0.self_attn.k_proj", rows)
    assert there[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]  # two heads, halves in turn
    assert torch.equal(names.from_gguf("model.layers.0.self_attn.k_proj", there), rows)
    assert torch.equal(names.to_gguf("model.layers.0.mlp.up_proj", rows), rows)


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.mlp])
def test_other_models_are_refused_with_the_known_types(make):
    with pytest.raises(InputError, match=rf"has no GGUF export: .* {', '.join(ARCHITECTURES)}"):
        gguf_names(make(), [])


def test_a_linear_without_a_name_is_refused():
    with pytest.raises(InputError, match=r"'model\.layers\.0\.other' has no name in llama.cpp"):
        gguf_names(tiny_gguf.model("llama"), ["model.layers.0.other"])
