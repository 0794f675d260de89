"""Soft prompts: codes, the frozen model's bits, gradients against dense autograd, padding."""

from __future__ import annotations

import pytest
import torch
import transformers
from causal_models import causal_model, encoder_decoder
from tiny_kinds import base_of

from taskedge.backbone.label_loss import use_label_loss
from taskedge.errors import InputError
from taskedge.forms.prompt import (
    NO_ROLE,
    SYSTEM,
    USER,
    PromptEmbedding,
    PromptLayout,
    attach_prompt,
    attached_prompt,
    remove_prompt,
    with_prompt_room,
)
from taskedge.forms.recompute import recomputing
from taskedge.training.generation import generate

KINDS = ("llama", "gemma2", "gemma3_text", "gpt2")


def layout_of(model, slots=2, length=3, **fields):
    embedding = model.get_input_embeddings()
    return PromptLayout(tuple(f"s{n}" for n in range(slots)), length, embedding.num_embeddings, **fields)


def numbers(model, layout, seed=1):
    width, dtype = model.get_input_embeddings().embedding_dim, model.get_input_embeddings().weight.dtype
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(layout.slots), layout.length, width, generator=drawn, dtype=dtype)
    return tokens, torch.randn(3, width, generator=drawn, dtype=dtype) if layout.segments else None


def test_codes():
    layout = PromptLayout(("a", "b"), 2, 10, segments=True)
    assert (layout.num_codes, layout.room) == (14, 2)
    assert layout.soft_codes(0) == [10 + 14, 11 + 14]
    assert layout.soft_codes(1) == [12 + 14, 13 + 14]
    assert layout.placed([5, 6], [USER, SYSTEM], 1, 1) == [5 + 28, 26, 27, 6 + 42]
    assert PromptLayout(("a",), 2, 10, repeat=True).placed([5, 6], [USER, USER], 0, 0) == [10, 11, 5, 6, 10, 11]
    assert PromptLayout(("a",), 2, 10, where="after").placed([5, 6], [USER, USER], 0, 1) == [5, 6, 10, 11]


@pytest.mark.parametrize("kind", KINDS)
def test_without_tokens_and_with_zero_segments_the_bits_are_those_of_the_frozen_model(kind):
    model = causal_model(kind)
    ids = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        layout = layout_of(model, length=0, segments=True)
        attach_prompt(model, layout, torch.empty(2, 0, model.config.hidden_size), torch.zeros(3, 16))
        codes = torch.tensor([layout.placed(row, [NO_ROLE, *[USER, SYSTEM] * 3], 1, 1) for row in ids.tolist()])
        assert not torch.equal(codes, ids)
        assert torch.equal(model(input_ids=codes).logits, before)
        options = {"pad_token": 0, "end_token": 2, "new_tokens": 4, "batch_size": 2, "on_progress": str}
        assert generate(model, codes.tolist(), **options) == generate(model, ids.tolist(), **options)
        remove_prompt(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not isinstance(model.get_input_embeddings(), PromptEmbedding)


@pytest.mark.parametrize("where", ["before", "repeat", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_dense_autograd(kind, where):
    """The oracle concatenates vectors and hands them to the plain model as ``inputs_embeds``."""
    model = causal_model(kind).double()
    model.requires_grad_(False)
    places = {"before": {}, "repeat": {"repeat": True}, "after": {"where": "after"}}
    layout = layout_of(model, segments=True, **places[where])
    tokens, segments = numbers(model, layout)
    history, roles, value = [3, 4, 5, 6], [USER, USER, SYSTEM, USER], [7, 8, 2]
    embed = model.get_input_embeddings()

    dense_tokens, dense_segments = tokens.clone().requires_grad_(), segments.clone().requires_grad_()
    parts, text = [], embed(torch.tensor(history)) + dense_segments[torch.tensor(roles) - 1]
    for slot in range(2):
        soft = dense_tokens[slot] + dense_segments[0]
        order = {"before": [text[:1], soft, text[1:]], "after": [text, soft]}
        order["repeat"] = [*order["before"], soft]
        parts.append(torch.cat([*order[where], embed(torch.tensor(value))]))
    inputs = torch.stack(parts)
    labels = torch.full(inputs.shape[:2], -100)
    labels[:, -3:] = torch.tensor(value)
    learned = labels[:, 1:] != -100
    logits = model(inputs_embeds=inputs).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits[learned], labels[:, 1:][learned])  # not in transformers' fp32
    expected.backward()

    assert use_label_loss(model)
    prompt = attach_prompt(model, layout, tokens, segments)
    codes = torch.tensor([[*layout.placed(history, roles, slot, 1), *value] for slot in range(2)])
    loss = model(input_ids=codes, attention_mask=torch.ones_like(codes), labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    for own, dense in ((prompt.tokens, dense_tokens), (prompt.segments, dense_segments)):
        assert float((own.grad - dense.grad).abs().max() / dense.grad.abs().max()) < 1e-9
    assert all(p.grad is None for name, p in model.named_parameters() if "soft_prompt" not in name)


def test_rows_do_not_depend_on_those_beside_them():
    model = causal_model("llama")
    layout = layout_of(model, repeat=True, segments=True)
    attach_prompt(model, layout, *numbers(model, layout))
    rows = [layout.placed(ids, [USER] * len(ids), slot, 0) for slot, ids in enumerate([[3, 4, 5, 6, 7], [8]])]
    options = {"pad_token": 0, "end_token": 2, "new_tokens": 5, "on_progress": str}
    alone = [generate(model, [row], batch_size=1, **options)[0] for row in rows]
    assert generate(model, rows, batch_size=2, **options) == alone
    assert alone[0] != alone[1]


def test_recomputed_blocks_give_the_same_gradients():
    model = causal_model("llama")
    model.requires_grad_(False)
    prompt = attach_prompt(model, layout_of(model), *numbers(model, layout_of(model)))
    ids = torch.tensor([prompt.layout.placed([3, 4, 5], [USER] * 3, slot, 0) for slot in range(2)])
    gradients = []
    for mode in ("none", "blocks"):
        prompt.zero_grad()
        with recomputing(model, mode):
            model(input_ids=ids, labels=ids.clamp(max=60)).loss.backward()
        gradients.append(prompt.tokens.grad)
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


def test_bf16_base_keeps_trained_numbers_in_fp32():
    model = causal_model("llama").bfloat16()
    layout = layout_of(model, segments=True)
    prompt = attach_prompt(model, layout, *numbers(model, layout))
    model.bfloat16()
    assert prompt.tokens.dtype == prompt.segments.dtype == torch.float32
    ids = torch.tensor([layout.placed([3, 4], [USER, SYSTEM], 0, 0)])
    assert model.get_input_embeddings()(ids).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_reads_soft_tokens(kind, tmp_path):
    model = base_of(kind, "text-classification", tmp_path).model
    layout = layout_of(model, slots=1)
    before = model(input_ids=torch.tensor([[2, 5, 3]])).logits
    attach_prompt(model, layout, *numbers(model, layout))
    ids = torch.tensor([layout.placed([2, 5, 3], [USER] * 3, 0, 1)])
    assert ids.shape == (1, 6)
    assert not torch.allclose(model(input_ids=ids).logits, before)


def test_refusals():
    model = causal_model("llama")
    layout = layout_of(model)
    with pytest.raises(InputError, match=r"\[2, 3, 5\] over 61 words do not fit .* needs \[2, 3, 16\]"):
        attach_prompt(model, layout, torch.zeros(2, 3, 5), None)
    attach_prompt(model, layout, torch.zeros(2, 3, 16), None)
    with pytest.raises(InputError, match="has a soft prompt already"):
        attach_prompt(model, layout, torch.zeros(2, 3, 16), None)
    with pytest.raises(InputError, match="T5ForConditionalGeneration is an encoder-decoder"):
        attach_prompt(encoder_decoder("t5"), layout, torch.zeros(2, 3, 16), None)
    images = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    assert attached_prompt(images) is None
    with pytest.raises(InputError, match="ResNetModel has no embedding of tokens"):
        attach_prompt(images, layout, torch.zeros(2, 3, 16), None)
    with pytest.raises(InputError, match="Linear has no embedding of tokens"):
        attach_prompt(torch.nn.Linear(2, 2), layout, torch.zeros(2, 3, 16), None)


def test_a_model_that_reads_ids_elsewhere_is_refused_and_stays_plain():
    class TwoEmbeddings(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, **kwargs):
            self.lm_head.weight[input_ids]
            return super().forward(input_ids=input_ids, **kwargs)

    model = causal_model("llama")
    model.__class__ = TwoEmbeddings
    with pytest.raises(InputError, match="its layers read token ids elsewhere too"):
        attach_prompt(model, layout_of(model), torch.zeros(2, 3, 16), None)
    assert attached_prompt(model) is None


def test_soft_tokens_take_positions(tmp_path):
    base = base_of("gpt2", "text-generation", tmp_path)
    assert with_prompt_room(base) is base
    layout = layout_of(base.model, repeat=True)
    attach_prompt(base.model, layout, *numbers(base.model, layout))
    assert with_prompt_room(base).max_positions == 64 - 6
    remove_prompt(base.model)
    layout = layout_of(base.model, length=63)
    attach_prompt(base.model, layout, *numbers(base.model, layout))
    with pytest.raises(InputError, match="63 soft tokens leave 1 of the base's 64 positions"):
        with_prompt_room(base)
