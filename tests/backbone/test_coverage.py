"""Which share of a model's blocks can carry entries; what cannot is named with its kind and size."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers.models.dbrx.modeling_dbrx import DbrxExperts

from taskedge.backbone.candidates import candidates
from taskedge.backbone.coverage import LeftOut, coverage, experts_text, idle_text, log_coverage


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


def test_fused_experts_are_covered():
    """transformers 5 stores the experts of a mixture as 3-D parameters; each slice is a linear here."""
    result = coverage(mixtral())
    block, experts = 2 * 16 * 16 + 2 * 8 * 16, 4 * 48 * 16 + 4 * 16 * 24
    assert (result.covered, result.vectors) == (2 * (block + experts), 2 * 2 * 16)
    assert result.left_out == (
        LeftOut("model.layers.*.mlp.gate.weight", "2-D parameters of MixtralTopKRouter", 2, 2 * 4 * 16),
    )
    assert str(result) == (
        "entries can be in 10,752 of 10,944 parameters of the blocks (98.2%), not in "
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


def test_full_coverage_is_not_logged():
    lines = []
    log_coverage(torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2)), lines.append)
    assert lines == []
    log_coverage(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), lines.append)
    assert lines == [
        "entries can be in 16 of 20 parameters outside the head (80.0%); the others are 4 biases and norms"
    ]


def test_lines_about_experts_and_idle_linears():
    model = mixtral()
    names = list(candidates(model))
    assert experts_text(model, names[:4]) == ""
    assert experts_text(model, names[:6]).startswith("2 of 6 linears are of experts: in training each runs by itself")
    assert idle_text(model, names[3:5]) == (
        "left out: 2 linears that never ran on the calibration batches (1 of experts that no token was routed to, "
        f"1 whose weight the model reads without calling them, if at all): {names[3]}, {names[4]}"
    )


def test_experts_in_other_forms_are_named():
    """JetMoE's do not know which token they read; DBRX's are 2-D, one below the other."""
    sizes = {"vocab_size": 30, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "kv_channels": 8}
    jetmoe = transformers.AutoModelForCausalLM.from_config(transformers.JetMoeConfig(**sizes))
    fields = {"hidden_size": 16, "ffn_hidden_size": 24, "moe_num_experts": 4, "ffn_act_fn": {"name": "silu"}}
    dbrx = nn.ModuleList([DbrxExperts(SimpleNamespace(**fields)) for _ in range(2)])
    for model, pattern, reason in (
        (jetmoe, "model.layers.*.mlp.input_linear.weight", "3-D parameters of JetMoeParallelExperts"),
        (dbrx, "*.mlp.w1", "2-D parameters of DbrxExpertGLU"),
    ):
        found = next(part for part in coverage(model).left_out if part.pattern == pattern)
        assert (found.reason, found.tensors) == (reason, 2)
