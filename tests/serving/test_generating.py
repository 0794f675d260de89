"""Generation of rows with limits and end tokens of their own, against transformers."""

from __future__ import annotations

import tiny_kinds
import torch

from taskedge.serving.generating import GeneratedRow, generate_rows
from taskedge.training.generation import generate


def test_rows_are_those_of_generate(tmp_path):
    base = tiny_kinds.base_of("llama", "text-generation", tmp_path)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    truth = generate(
        base.model, prompts, pad_token=0, end_token=[999], new_tokens=9, batch_size=1, on_progress=lambda _: None
    )
    seen = []
    rows = [
        GeneratedRow(prompts[0], frozenset([999]), 9),
        GeneratedRow(prompts[1], frozenset([999]), 2, lambda tokens: seen.append(list(tokens)) or True),
        GeneratedRow(prompts[2], frozenset([truth[2][1]]), 9),
    ]
    published = base.model.generation_config
    with torch.no_grad():
        generate_rows(base.model, rows, 0)
    assert base.model.generation_config is published
    assert rows[0].tokens == truth[0]
    assert rows[1].tokens == truth[1][:2]
    assert rows[2].tokens == truth[2][: truth[2].index(truth[2][1])]
    assert [row.finish for row in rows[1:]] == ["length", "stop"]
    assert rows[0].finish == "length"
    assert seen == [truth[1][:1], truth[1][:2]]


def test_a_row_ends_when_its_callback_says_so():
    row = GeneratedRow([1], frozenset([9]), 5, lambda tokens: len(tokens) < 2)
    for token in (4, 5, 6):
        row.add(token)
    assert (row.tokens, row.finish) == ([4, 5], "stop")
