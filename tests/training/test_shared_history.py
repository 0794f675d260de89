"""One pass over a history gives the tokens that each prompt gives alone."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model

from taskedge.forms.prompt import SYSTEM, USER, PromptLayout, attach_prompt
from taskedge.training.generation import generate
from taskedge.training.shared_history import generate_after

OPTIONS = {"new_tokens": 6}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("length", [0, 3])
def test_slots_share_the_pass_over_their_history(kind, length):
    model = causal_model(kind)
    layout = PromptLayout(("a", "b", "c"), length, 61, where="after", segments=True)
    drawn = torch.Generator().manual_seed(3)
    numbers = torch.randn(3, length, 16, generator=drawn), torch.randn(3, 16, generator=drawn)
    attach_prompt(model, layout, *numbers)
    history, roles = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [USER, SYSTEM] * 5
    prompts = [layout.placed(history, roles, slot, 0) for slot in range(3)]
    seen: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    values = generate_after(model, prompts, end_tokens={2}, **OPTIONS)
    handle.remove()
    assert seen[0] == 10 - (length == 0)  # the history is read once, and the rest in each row
    assert seen[1] == 3 * max(length, 1)
    expected = generate(model, prompts, pad_token=0, end_token=2, batch_size=1, on_progress=str, **OPTIONS)
    assert values == expected
    if length:
        assert len({tuple(value) for value in values}) > 1


def test_prompts_of_one_turn_have_one_length():
    with pytest.raises(ValueError, match="prompts of 1 to 2 tokens"):
        generate_after(causal_model("llama"), [[3], [3, 4]], end_tokens={2}, **OPTIONS)
