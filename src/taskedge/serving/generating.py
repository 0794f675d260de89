"""Greedy generation for rows of different tasks in one batch, with a callback for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskedge.training.generation import left_padded_batch, target_batch


@dataclass
class GeneratedRow:
    """One row of a generation.

    Attributes:
        prompt: token ids.
        end_tokens: the row ends before the first of them.
        new_tokens: largest number of generated tokens.
        on_token: called with the tokens so far after each one; the row ends if it returns False.
        tokens: the generated tokens, without the end token.
        finish: ``"stop"`` after an end token or the callback, ``"length"`` after ``new_tokens``; empty while it runs.
    """

    prompt: Sequence[int]
    end_tokens: frozenset[int]
    new_tokens: int
    on_token: Callable[[list[int]], bool] = lambda _: True
    tokens: list[int] = field(default_factory=list)
    finish: str = ""

    def add(self, token: int) -> None:
        """Take one more token, unless the row has ended."""
        if self.finish:
            return
        if token in self.end_tokens:
            self.finish = "stop"
            return
        self.tokens.append(token)
        if not self.on_token(self.tokens):
            self.finish = "stop"
        elif len(self.tokens) >= self.new_tokens:
            self.finish = "length"


def generate_rows(model: Any, rows: Sequence[GeneratedRow], pad_token: int) -> None:
    """Generate the most probable tokens of each row until all rows have ended; ``tokens`` and ``finish`` are filled.

    Prompts are padded at their start; the sources of an encoder-decoder at their end. The model's own penalties and
    sampling are not used.
    """
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class EachToken(StoppingCriteria):  # type: ignore[misc]
        """Hand the newest token of each row over, and say which rows have ended."""

        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
                row.add(token)
            return torch.tensor([bool(row.finish) for row in rows], device=input_ids.device)

    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max(row.new_tokens for row in rows), pad_token_id=pad_token
    )
    published, model.generation_config = model.generation_config, greedy
    prompts = [row.prompt for row in rows]
    if model.config.is_encoder_decoder:
        greedy.decoder_start_token_id = model.config.decoder_start_token_id
        greedy.forced_bos_token_id = getattr(published, "forced_bos_token_id", None)
        batch = target_batch(model, prompts, pad_token)
    else:
        batch = left_padded_batch(model, prompts, pad_token)
    try:
        model.generate(**batch, generation_config=greedy, stopping_criteria=StoppingCriteriaList([EachToken()]))
    finally:
        model.generation_config = published
