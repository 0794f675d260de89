"""Texts are cut at the requested length or the task's, within the positions of the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from taskedge.errors import InputError
from taskedge.training.token_limit import token_limit


def parts(max_length, positions, special=2):
    task = SimpleNamespace(max_length=max_length, column_sets=[("text", "label")])
    base = SimpleNamespace(max_positions=positions, tokenizer=lambda _: {"input_ids": [[0] * special]})
    return task, base


@pytest.mark.parametrize(
    ("of_task", "positions", "requested", "limit"),
    [(128, 512, None, 128), (128, 512, 40, 40), (128, 64, None, 64), (128, None, 600, 600), (None, 64, None, 0)],
)
def test_the_smaller_counts(of_task, positions, requested, limit):
    said = []
    task, base = parts(of_task, positions)
    assert token_limit(task, base, requested, said.append) == limit
    assert bool(said) == (limit == positions)


def test_a_limit_that_leaves_no_token_of_a_text_is_refused():
    with pytest.raises(InputError, match=r"--max-length 2 leaves no token of a text.*at least 3"):
        token_limit(*parts(128, 512), 2, print)
