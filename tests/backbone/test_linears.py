"""Which layers are matrix products, which of them can carry entries, and what the head is."""

import pytest
import tiny
import torch
from torch import nn
from transformers import BertModel, GPT2LMHeadModel

from taskedge.backbone.linears import as_linear, candidates, head_parameters, linears
from taskedge.errors import InputError


def test_a_conv1d_is_seen_as_out_by_in_and_writes_go_through():
    found = linears(tiny.gpt2())["transformer.h.0.attn.c_attn"]
    assert found.shape == (48, 16)
    assert found.module.weight.shape == (16, 48)
    found.weight[47, 3] = 9.0
    assert found.module.weight[3, 47] == 9.0
    assert not found.weight.requires_grad


def test_other_modules_are_no_linears():
    assert as_linear("x", nn.LayerNorm(3)) is None
    assert as_linear("x", nn.Conv1d(3, 3, 1)) is None
    assert as_linear("x", nn.Bilinear(3, 3, 3)) is None


def test_candidates_are_the_linears_of_the_blocks():
    names = list(candidates(tiny.bert()))
    assert len(names) == 12
    assert names[0] == "bert.encoder.layer.0.attention.self.query"
    assert all(name.startswith("bert.encoder.layer.") for name in names)
    assert len(candidates(tiny.gpt2())) == 8
    assert len(candidates(tiny.vit())) == 12


def test_without_blocks_all_linears_but_the_head():
    assert list(candidates(tiny.mlp())) == ["first", "second"]
    assert list(candidates(nn.Linear(3, 2))) == [""]


def test_linears_can_be_named_or_matched_in_the_order_of_the_model():
    chosen = candidates(tiny.bert(), ["*.1.output.dense", "*.0.attention.self.value", "classifier"])
    assert list(chosen) == [
        "bert.encoder.layer.0.attention.self.value",
        "bert.encoder.layer.1.output.dense",
        "classifier",
    ]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"no linear is named 'secnd'; did you mean 'second'\?"):
        candidates(tiny.mlp(), ["secnd"])


def test_a_model_without_linears_is_refused():
    with pytest.raises(InputError, match="no linear layers"):
        candidates(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()))


def test_tied_weights_are_left_out_and_refused_by_name():
    model = tiny.mlp()
    model.third = nn.Linear(10, 8)
    model.third.weight = model.second.weight
    assert list(candidates(model)) == ["first"]
    with pytest.raises(InputError, match="'second' cannot carry entries: its weight is tied"):
        candidates(model, ["second"])
    language_model = GPT2LMHeadModel(tiny.gpt2().config)
    with pytest.raises(InputError, match="tied"):
        candidates(language_model, ["lm_head"])


def test_a_module_used_under_two_names_is_one_linear():
    model = tiny.mlp()
    model.alias = model.second
    assert list(candidates(model)) == ["first", "second"]


def test_the_projection_of_a_multihead_attention_is_refused():
    model = nn.Module()
    model.attention, model.fc_in = nn.MultiheadAttention(4, 2), nn.Linear(4, 4)
    assert "attention.out_proj" not in candidates(model, ["*"])
    with pytest.raises(InputError, match="MultiheadAttention"):
        candidates(model, ["attention.out_proj"])


def test_computed_and_whole_number_weights_are_refused():
    model = tiny.mlp()
    torch.nn.utils.parametrizations.weight_norm(model.first)
    model.second.weight = nn.Parameter(torch.ones(8, 10, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"first: its weight is computed.*second: its weight is torch.int8"):
        candidates(model)


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (tiny.bert, ["classifier.weight", "classifier.bias"]),
        (tiny.gpt2, ["score.weight"]),
        (tiny.vit, ["classifier.weight", "classifier.bias"]),
        (tiny.mlp, ["head.weight", "head.bias"]),
        (lambda: BertModel(tiny.bert().config), []),
        (lambda: GPT2LMHeadModel(tiny.gpt2().config), []),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), ["2.weight", "2.bias"]),
        (lambda: nn.Linear(3, 2), []),
    ],
)
def test_the_head(make, head):
    assert head_parameters(make()) == head
