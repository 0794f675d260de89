"""Two deltas are one change only if every part of them is."""

from __future__ import annotations

from dataclasses import replace

import torch

from taskedge.delta.delta import Delta, LinearDelta
from taskedge.delta.prompt_delta import PromptDelta
from taskedge.delta.same_delta import same_delta
from taskedge.forms.prompt import PromptLayout

ENTRIES = Delta({"x": LinearDelta((2, 2), torch.tensor([0]), torch.tensor([1]), torch.ones(1), "float32", "d")})
PROMPT = PromptDelta(PromptLayout(("a",), 1, 5), torch.ones(1, 1, 4), None, "float32", "d")


def test_values_and_names_count():
    other = replace(ENTRIES.linears["x"], values=torch.zeros(1))
    assert same_delta(ENTRIES, replace(ENTRIES))
    assert not same_delta(ENTRIES, Delta({"x": other}))
    assert not same_delta(ENTRIES, Delta({}))
    assert not same_delta(ENTRIES, replace(ENTRIES, full_parameters={"b": torch.ones(1)}))


def test_soft_prompts_count():
    first = Delta({}, prompt=PROMPT)
    assert same_delta(first, Delta({}, prompt=replace(PROMPT, tokens=torch.ones(1, 1, 4))))
    assert not same_delta(first, Delta({}))
    assert not same_delta(first, Delta({}, prompt=replace(PROMPT, tokens=torch.zeros(1, 1, 4))))
    assert not same_delta(first, Delta({}, prompt=replace(PROMPT, layout=PromptLayout(("b",), 1, 5))))
