"""Batched log-likelihood and greedy generation for causal language models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskedge.training.data.text_data import evaluating

IGNORED = -100
"""Label of a token that is not learned."""
MAX_LOGITS = 2**27
"""Largest number of logits at once: 0.5 GB in fp32."""


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return rows as int64 [rows, longest], filled with ``value`` at their end, or with ``left`` at their start."""
    longest = max(map(len, rows))
    padded = []
    for row in rows:
        padding = [value] * (longest - len(row))
        padded.append([*padding, *row] if left else [*row, *padding])
    return torch.tensor(padded)


def negative_log_likelihood(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    on_progress: Callable[[int], object],
) -> tuple[float, int]:
    """Return the sum of the negative log-likelihoods, in nats, of all tokens that have a label, and their number."""
    device, total, num_tokens = next(model.parameters()).device, 0.0, 0
    vocabulary = int(getattr(model.config, "vocab_size", 2**16))
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)  # the largest batch comes first
    start = 0
    with evaluating(model):
        while start < len(ordered):
            max_rows = max(1, MAX_LOGITS // (vocabulary * len(ordered[start]["input_ids"])))
            batch_rows = ordered[start : start + min(batch_size, max_rows)]
            batch = {key: value.to(device) for key, value in collate(batch_rows).items()}
            labels = batch.pop("labels")[:, 1:].flatten()
            logits = model(**batch).logits[:, :-1].flatten(0, 1)  # (rows · (tokens - 1), vocabulary)
            learned = labels != IGNORED
            total += float(cross_entropy(logits[learned].float(), labels[learned], reduction="sum"))
            num_tokens += int(learned.sum())
            start += len(batch_rows)
            on_progress(len(batch_rows))
    return total, num_tokens


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_token: int,
    end_token: int,
    new_tokens: int,
    batch_size: int,
    on_progress: Callable[[int], object],
) -> list[list[int]]:
    """Return the most probable tokens after each prompt, one at a time, up to the end token or ``new_tokens``."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses: list[list[int]] = [[] for _ in prompts]
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, pad_token_id=pad_token, eos_token_id=end_token
    )
    published = model.generation_config  # its penalties and sampling are not used
    model.generation_config = greedy
    try:
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                indices = order[start : start + batch_size]
                batch = [prompts[index] for index in indices]
                ids = pad(batch, pad_token, left=True).to(device)
                mask = pad([[1] * len(prompt) for prompt in batch], 0, left=True).to(device)
                output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
                for index, tokens in zip(indices, output[:, ids.shape[1] :].tolist(), strict=True):
                    responses[index] = tokens[: tokens.index(end_token)] if end_token in tokens else tokens
                on_progress(len(indices))
    finally:
        model.generation_config = published
    return responses
