"""Small models with repeated blocks, for the tests of step_profile and its neighbors."""

from __future__ import annotations

import torch
import transformers

import taskedge as te
from taskedge.backbone.cost_model import dummy_inputs


def tiny(layers: int = 4):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return transformers.AutoModel.from_config(config)


def sparse():
    model = tiny()
    inputs = dummy_inputs(model, 2, 16)
    te.install(model, te.select(model, [inputs], per_neuron=1), trainable=[])
    return model, inputs
