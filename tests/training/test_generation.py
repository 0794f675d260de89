"""Likelihoods and greedy responses of batches are those of single rows."""

from __future__ import annotations

import math

import pytest
import tiny_kinds
import tiny_task
import torch
import transformers
from torch.nn.functional import log_softmax
from transformers import GenerationConfig

from taskedge.backbone.label_loss import LabelLossModel
from taskedge.backbone.loading import load_base
from taskedge.training import generation
from taskedge.training.generation import (
    IGNORED,
    generate,
    label_collator,
    negative_log_likelihood,
    pad,
    predicts_next_tokens,
)

PROMPTS = [[4, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14], [5, 6], [16, 17, 18]]


@pytest.fixture(scope="module", params=[tiny_task.gpt2_lm, tiny_task.llama])
def base(request, tmp_path_factory):
    return load_base("text-generation", request.param(tmp_path_factory.mktemp("lm")))


def collate(rows):
    ids = [row["input_ids"] for row in rows]
    mask, labels = pad([[1] * len(row) for row in ids], 0), pad([row["labels"] for row in rows], IGNORED)
    return {"input_ids": pad(ids, 0), "attention_mask": mask, "labels": labels}


def test_padding():
    assert pad([[1, 2, 3], [4]], 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert pad([[1, 2, 3], [4]], 9, left=True).tolist() == [[1, 2, 3], [9, 9, 4]]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("most", [generation.MAX_LOGITS, 22 * 8, 1])
def test_likelihood_is_that_of_each_learnt_token(base, batch_size, most, monkeypatch):
    monkeypatch.setattr(generation, "MAX_LOGITS", most)  # few logits at once: smaller batches
    rows = [{"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in PROMPTS]
    total, count, done = 0.0, 0, []
    for row in rows:
        with torch.no_grad():
            chances = log_softmax(base.model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0].double(), -1)
        for place in range(1, len(row["labels"])):
            if row["labels"][place] != IGNORED:
                total -= float(chances[place - 1, row["labels"][place]])
                count += 1
    found, tokens = negative_log_likelihood(base.model, rows, collate, batch_size, done.append)
    assert tokens == count
    assert math.isclose(found, total, rel_tol=1e-5)
    assert sum(done) == len(rows)


@pytest.mark.parametrize("own_loss", [False, True])
def test_likelihood_of_targets_is_that_of_each_token(own_loss, tmp_path):
    """An encoder-decoder reads the shifted labels, with the loss from labeled positions and with its own."""
    base = load_base("text-to-text", tiny_task.t5(tmp_path))
    if own_loss:
        base.model.__class__ = transformers.T5ForConditionalGeneration
    assert isinstance(base.model, LabelLossModel) != own_loss
    rows = [{"input_ids": ids, "labels": [*ids[::-1], 1]} for ids in PROMPTS]
    total = 0.0
    for row in rows:
        start = [base.model.config.decoder_start_token_id, *row["labels"][:-1]]
        inputs = {"input_ids": torch.tensor([row["input_ids"]]), "decoder_input_ids": torch.tensor([start])}
        with torch.no_grad():
            chances = log_softmax(base.model.eval()(**inputs).logits[0].double(), -1)
        total -= float(chances[range(len(start)), row["labels"]].sum())
    found, tokens = negative_log_likelihood(base.model, rows, label_collator(0), 2, lambda _: None)
    assert tokens == sum(len(row["labels"]) for row in rows)
    assert math.isclose(found, total, rel_tol=1e-5)


def greedy(model, prompt, new_tokens, end):
    """One token at a time, without cache or padding."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == end:
            break
        ids.append(best)
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_likeliest_tokens_up_to_the_end(base, batch_size):
    model, done = base.model.train(), []
    direct = [greedy(model.eval(), prompt, 9, end=3) for prompt in PROMPTS]
    model.train()
    end = direct[0][3]  # so that it occurs
    direct = [greedy(model.eval(), prompt, 9, end) for prompt in PROMPTS]
    model.train()
    found = generate(
        model, PROMPTS, pad_token=0, end_token=end, new_tokens=9, batch_size=batch_size, on_progress=done.append
    )
    assert found == direct
    assert len({len(tokens) for tokens in found}) > 1
    assert sum(done) == len(PROMPTS)
    assert model.training


def test_what_the_base_was_published_with_is_left_out(base):
    fixed = {"pad_token": 0, "end_token": 3, "new_tokens": 9, "batch_size": 2, "on_progress": lambda _: None}
    plain = generate(base.model, PROMPTS, **fixed)
    own = base.model.generation_config
    try:
        base.model.generation_config = published = GenerationConfig(
            do_sample=True, temperature=9.0, repetition_penalty=8.0, min_new_tokens=5, suppress_tokens=[4, 5, 6, 7]
        )
        assert generate(base.model, PROMPTS, **fixed) == plain
        assert base.model.generation_config is published
    finally:
        base.model.generation_config = own


def test_any_of_several_ends(base):
    fixed = {"pad_token": 0, "new_tokens": 9, "batch_size": 2, "on_progress": lambda _: None}
    full = generate(base.model, PROMPTS, end_token=[], **fixed)
    ends = {full[0][3], full[1][2]}
    cut = [row[: min((row.index(end) for end in ends if end in row), default=9)] for row in full]
    assert generate(base.model, PROMPTS, end_token=ends, **fixed) == cut


def test_a_base_whose_positions_count_padding(tmp_path):
    """BART's decoder takes no positions, so prompts of other lengths do not share its batches."""
    bart = tiny_kinds.base_of("bart", "text-generation", tmp_path / "bart").model
    done = []
    fixed = {"pad_token": 0, "end_token": 3, "new_tokens": 5}
    found = generate(bart, PROMPTS, **fixed, batch_size=5, on_progress=done.append)
    assert found == [greedy(bart, prompt, 5, 3) for prompt in PROMPTS]
    assert done == [1, 1, 2, 1]
    generate(bart, PROMPTS[:1] * 4, **fixed, batch_size=3, on_progress=done.append)
    assert done[4:] == [3, 1]


def test_whose_loss_is_that_of_the_next_token(base, tmp_path):
    assert predicts_next_tokens(base.model)
    assert not predicts_next_tokens(tiny_kinds.base_of("bart", "text-generation", tmp_path / "bart").model)
