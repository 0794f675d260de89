"""What a causal language model does with token rows: how likely they are to it, and how it goes on, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskedge.training.data.text_data import evaluating

IGNORED = -100
"""The label of a token that is not learnt."""
_LOGITS = 2**27
"""Most logits that are made at once: 0.5 GB of them in fp32."""


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """int64 [rows, longest]"""
    longest = max(map(len, rows))
    filled = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([f + list(r) if left else list(r) + f for f, r in zip(filled, rows, strict=True)])


def likelihood(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    done: Callable[[int], object],
) -> tuple[float, int]:
    """The sum of the negative log-likelihoods, in nats, of all tokens that have a label, and their number."""
    device, total, tokens = next(model.parameters()).device, 0.0, 0
    vocabulary = int(getattr(model.config, "vocab_size", 2**16))
    order = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)  # the largest batch comes first
    start = 0
    with evaluating(model):
        while start < len(order):
            fit = max(1, _LOGITS // (vocabulary * len(order[start]["input_ids"])))
            chosen = order[start : start + min(batch_size, fit)]
            batch = {key: value.to(device) for key, value in collate(chosen).items()}
            labels = batch.pop("labels")[:, 1:].flatten()
            logits = model(**batch).logits[:, :-1].flatten(0, 1)  # (rows · (tokens - 1), vocabulary)
            learnt = labels != IGNORED
            total += float(cross_entropy(logits[learnt].float(), labels[learnt], reduction="sum"))
            tokens += int(learnt.sum())
            start += len(chosen)
            done(len(chosen))
    return total, tokens


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_token: int,
    end_token: int,
    new_tokens: int,
    batch_size: int,
    done: Callable[[int], object],
) -> list[list[int]]:
    """The tokens that the model puts after each prompt, each time the likeliest, up to the end token or the limit."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: list[list[int]] = [[] for _ in prompts]
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=pad_token, eos_token_id=end_token
    )
    own = model.generation_config
    model.generation_config = greedy  # what the base was published with (penalties, sampling) is left out
    try:
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                chosen = [prompts[place] for place in order[start : start + batch_size]]
                ids = pad(chosen, pad_token, left=True).to(device)
                mask = pad([[1] * len(prompt) for prompt in chosen], 0, left=True).to(device)
                made = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
                for place, tokens in zip(order[start:], made[:, ids.shape[1] :].tolist(), strict=False):
                    found[place] = tokens[: tokens.index(end_token)] if end_token in tokens else tokens
                done(len(chosen))
    finally:
        model.generation_config = own
    return found
