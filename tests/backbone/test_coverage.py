"""Which share of a model's blocks can carry entries; what cannot is named with its kind and size."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import transformers
from torch import nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.coverage import LeftOut, coverage


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    with torch.device("meta"):
        return transformers.MixtralForCausalLM(config)


def xlnet():
    config = transformers.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=32)
    with torch.device("meta"):
        return transformers.XLNetForSequenceClassification(config)


@pytest.mark.parametrize("make", [*tiny.MODELS.values(), mixtral, xlnet])
def test_the_numbers_add_up(make):
    model = make()
    result = coverage(model)
    assert result.covered == sum(linear.weight.numel() for linear in candidates(model).values())
    assert result.parameters == result.covered + result.vectors + sum(part.parameters for part in result.left_out)
    assert json.loads(json.dumps(result.as_json()))["covered"] == result.covered


@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, tiny.vit])
def test_only_biases_and_norms_of_a_transformer_are_not_covered(make):
    result = coverage(make())
    assert result.left_out == ()
    assert result.share > 0.8
    assert str(result).endswith(f"; the others are {result.vectors:,} biases and norms")


def test_fused_experts_are_left_out():
    """transformers 5 stores the experts of a mixture as 3-D parameters, which no layer holds."""
    result = coverage(mixtral())
    block = 2 * 16 * 16 + 2 * 8 * 16
    assert (result.covered, result.vectors) == (2 * block, 2 * 2 * 16)
    assert result.left_out == (
        LeftOut("model.layers.*.mlp.experts.gate_up_proj", "3-D parameters of MixtralExperts", 2, 2 * 4 * 48 * 16),
        LeftOut("model.layers.*.mlp.experts.down_proj", "3-D parameters of MixtralExperts", 2, 2 * 4 * 16 * 24),
        LeftOut("model.layers.*.mlp.gate.weight", "2-D parameters of MixtralTopKRouter", 2, 2 * 4 * 16),
    )
    assert str(result) == (
        "entries can be in 1,536 of 10,944 parameters of the blocks (14.0%), not in "
        "model.layers.*.mlp.experts.gate_up_proj (6,144: 3-D parameters of MixtralExperts), "
        "model.layers.*.mlp.experts.down_proj (3,072: 3-D parameters of MixtralExperts), "
        "model.layers.*.mlp.gate.weight (128: 2-D parameters of MixtralTopKRouter)"
    )


def test_projections_that_are_parameters_of_the_attention_are_left_out():
    result = coverage(xlnet())
    assert {part.pattern: part.parameters for part in result.left_out[:5]} == {
        f"transformer.layer.*.rel_attn.{name}": 2 * 16 * 16 for name in "qkvor"
    }
    assert str(result).endswith(", 5 more (672)")


class Odd(nn.Module):
    """Two blocks with a tied linear, attention that reads its weights itself, and an embedding."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": nn.MultiheadAttention(8, 2),
                    "first": nn.Linear(8, 8),
                    "tied": nn.Linear(8, 8),
                    "positions": nn.Embedding(4, 8),
                }
            )
            for _ in range(2)
        )
        for layer in self.layers:
            layer["tied"].weight = layer["first"].weight
        self.plain = nn.Linear(8, 8)


def test_reasons():
    result = coverage(Odd())
    assert {part.pattern: part.reason for part in result.left_out} == {
        "layers.*.attention.in_proj_weight": "2-D parameters of MultiheadAttention",
        "layers.*.attention.out_proj.weight": "nn.MultiheadAttention reads its weight without calling it",
        "layers.*.first.weight": "its weight is tied to another module",
        "layers.*.positions.weight": "Embedding, which carries entries only if it is named",
    }
    assert result.covered == 0


def test_a_model_without_blocks_counts_all_but_the_head(mlp):
    result = coverage(mlp)
    assert (result.covered, result.vectors, result.left_out) == (120 + 80, 10 + 8, ())
    assert str(result) == (
        "entries can be in 200 of 218 parameters outside the head (91.7%); the others are 18 biases and norms"
    )


def test_a_model_without_parameters():
    assert coverage(nn.ReLU()).share == 0.0
