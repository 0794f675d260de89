"""Greedy values of several slots after one pass over their history, whose keys and values all of them read.

For soft prompts after the history (``where="after"``): what comes before them is the same for all slots of a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from taskedge.training.data.text_data import evaluating


def generate_after(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_tokens: Collection[int],
    new_tokens: int,
    on_progress: Callable[[int], object] = lambda _: None,
) -> list[list[int]]:
    """Return the most probable tokens after each prompt of one turn, up to an end token or ``new_tokens``.

    What all prompts begin with is computed once, as one row. The rest must have the same length in each.

    Args:
        model: a causal language model of transformers, with a cache of keys and values.
        prompts: tokens, or codes of a soft prompt, of each slot.
        end_tokens: a value ends before the first of them.
        new_tokens: largest number of tokens of a value.
        on_progress: called with the number of prompts when they are done.

    Raises:
        ValueError: the prompts have different lengths.
    """
    from transformers import DynamicCache

    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) != 1:
        raise ValueError(f"prompts of {min(lengths)} to {max(lengths)} tokens: those of one turn have one length")
    shared = min(_common(prompts), min(lengths) - 1)  # a token must be left to continue from
    device = next(model.parameters()).device
    values: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    with evaluating(model):
        cache = DynamicCache(config=model.config)
        if shared:
            history = torch.tensor([list(prompts[0][:shared])], device=device)
            cache = model(input_ids=history, past_key_values=cache, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(prompts))
        step = torch.tensor([list(prompt[shared:]) for prompt in prompts], device=device)
        for _ in range(new_tokens):
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            cache, best = output.past_key_values, output.logits[:, -1].argmax(-1)
            for row, token in enumerate(best.tolist()):
                ended[row] = ended[row] or token in end_tokens
                if not ended[row]:
                    values[row].append(token)
            if all(ended):
                break
            step = best[:, None]
    on_progress(len(prompts))
    return values


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens that all prompts begin with."""
    first = prompts[0]
    return next((place for place, tokens in enumerate(zip(*prompts, strict=True)) if len({*tokens}) > 1), len(first))
