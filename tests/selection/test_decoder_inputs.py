"""Statistics of an encoder-decoder count the source where a linear reads it, and the target elsewhere."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model, encoder_decoder, labeled_batch

from taskedge.backbone.candidates import candidates
from taskedge.selection.decoder_inputs import DecoderInputs
from taskedge.selection.statistics import measure


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("target_tokens", [9, 6])  # the first is the length of the source
def test_padding_of_source_and_target_is_left_out(kind, target_tokens):
    model = encoder_decoder(kind)
    batch = labeled_batch(model.config, 3, 9, seed=0)
    source = int(batch["attention_mask"].sum())
    batch["labels"] = torch.full((3, target_tokens), -100)
    for row, length in enumerate((2, 5, 4)):
        batch["labels"][row, :length] = batch["input_ids"][row, :length]
    tokens = {name: found.tokens for name, found in measure(model, candidates(model), [batch]).items()}
    cross = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")
    for name, count in tokens.items():
        reads_source = "encoder.block" in name or "encoder.layers" in name or name.endswith(cross)
        assert count == (source if reads_source else 11), name


def test_keys_and_values_of_all_cross_attentions_share_their_input():
    model = encoder_decoder("t5")
    batch = labeled_batch(model.config, 2, 5, seed=0)
    shared = {name: found.shared_input for name, found in measure(model, candidates(model), [batch]).items()}
    readers = [name for name in shared if name.endswith(("EncDecAttention.k", "EncDecAttention.v"))]
    assert len(readers) == 4
    assert {shared[name] for name in readers} == {"decoder.block.0.layer.1.EncDecAttention.k"}
    assert shared["decoder.block.0.layer.1.EncDecAttention.q"] == "decoder.block.0.layer.1.EncDecAttention.q"


def test_a_causal_model_has_no_target():
    inputs = DecoderInputs(causal_model("llama"))
    inputs.start({"labels": torch.zeros(2, 3, dtype=torch.long)})
    assert inputs.mask is None
    assert not inputs.is_read_by("model.layers.0.mlp.up_proj", torch.zeros(1))
