"""Which linears of a model can carry entries, and which parameters are its head."""

import pytest
import tiny
import tiny_experts
import torch
from torch import nn
from transformers import BertModel, GPT2LMHeadModel
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding

from taskedge.backbone.candidates import candidates, candidates_within, head_parameters, unusable_linears
from taskedge.backbone.layers import linears
from taskedge.errors import InputError


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
    with pytest.raises(InputError, match=r"no linear is named 'secnnd'; did you mean 'second'\?"):
        candidates(tiny.mlp(), ["secnnd"])


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


def test_computed_and_integer_weights_are_refused():
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


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x * 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 1, groups=2), "2 groups"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads in mode 'reflect'"),
        (lambda: Scaled(4, 4, 1), "Scaled has a forward pass of its own"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
        (lambda: nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (lambda: nn.Embedding(4, 4, sparse=True), "its gradients are sparse"),
        (lambda: BartLearnedPositionalEmbedding(4, 4), "BartLearnedPositionalEmbedding has a forward pass of its own"),
    ],
)
def test_what_cannot_carry_entries_is_refused_with_the_reason(make, reason):
    model = nn.Sequential(make(), nn.Linear(4, 4))
    with pytest.raises(InputError, match=f"linear '0' cannot carry entries: .*{reason}"):
        candidates(model, ["0"])


def test_layers_outside_the_default_scope_are_named_in_the_error():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Conv2d(1, 1, 1))
    reasons = r"0: takes part on request only, which only the Python library offers; 1: takes part in blocks only"
    with pytest.raises(InputError, match=reasons):
        candidates(model)


def test_only_the_blocks_nearest_the_output():
    names = list(candidates_within(tiny.bert(), 1))
    assert names == [name for name in candidates(tiny.bert()) if name.startswith("bert.encoder.layer.1.")]
    with pytest.raises(InputError, match="no linear at depth 1 or nearer the output can carry entries"):
        candidates_within(tiny.bert(), 1, ["*.0.output.dense"])


def test_a_linear_that_returns_more_than_its_product_is_left_out():
    model = tiny_experts.model_of("llama4")
    unusable = unusable_linears(model, linears(model))
    assert {name: reason for name, reason in unusable.items() if "router" in name} == {
        f"model.layers.{layer}.feed_forward.router": "Llama4Router returns more than its product" for layer in range(2)
    }


class Doubled(nn.Linear):
    """A linear with a forward pass of its own that returns a tensor, as Falcon's does."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_forward_pass_of_its_own_that_returns_a_tensor_is_no_reason():
    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 2))
    assert unusable_linears(model, linears(model)) == {}
