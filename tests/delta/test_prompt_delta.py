"""Soft prompts in a delta: the file, apply and revert, the base, what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from causal_models import causal_model
from safetensors import safe_open

from taskedge.delta.apply import apply, base_difference, revert
from taskedge.delta.combination.task_vectors import task_vector
from taskedge.delta.delta import Delta, Provenance
from taskedge.delta.extract import extract
from taskedge.delta.file import load, save
from taskedge.delta.interop.export import export
from taskedge.errors import BaseMismatch, DeltaError, InputError
from taskedge.forms.install import fuse
from taskedge.forms.install_prompt import install_prompt, prompt_support
from taskedge.forms.prompt import PromptLayout, attach_prompt, attached_prompt, remove_prompt

LAYOUT = PromptLayout(("hotel-area", "hotel-name"), 3, 61, repeat=True, segments=True)
CODES = torch.tensor([LAYOUT.placed([3, 4, 5], [2, 3, 2], slot, 0) for slot in range(2)])


def trained():
    """Return a model whose soft prompt has trained, and the delta."""
    model = causal_model("llama")
    drawn = torch.Generator().manual_seed(0)
    attach_prompt(model, LAYOUT, torch.randn(2, 3, 16, generator=drawn), torch.randn(3, 16, generator=drawn))
    install_prompt(model, prompt_support(model), trainable=[])
    return model, extract(model)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_a_file_applies_to_the_base_and_reverts(tmp_path, values):
    model, delta = trained()
    expected = logits(model, CODES)
    path = save(delta, tmp_path / "task.safetensors", values=values)
    loaded = load(path)
    assert loaded.prompt.layout == LAYOUT
    assert loaded.prompt.num_parameters == 2 * 3 * 16 + 3 * 16
    base = causal_model("llama")
    plain = logits(base, CODES % 61)
    apply(base, loaded)
    if values == "fp32":
        assert torch.equal(logits(base, CODES), expected)
    assert not any(parameter.requires_grad for parameter in attached_prompt(base).parameters())
    apply(base, load(path))  # the same change again
    revert(base)
    assert attached_prompt(base) is None
    assert torch.equal(logits(base, CODES % 61), plain)


def test_an_older_reader_refuses_the_file_by_its_form(tmp_path):
    path = save(trained()[1], tmp_path / "task.safetensors")
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["taskedge"])
    assert (manifest["format"], manifest["form"]) == ("taskedge-delta/1", "sparse+prompt")


def test_another_base_is_refused():
    _, delta = trained()
    other = causal_model("llama", seed=1)
    with pytest.raises(BaseMismatch, match="the word vectors hold other values than the soft prompt's base"):
        apply(other, delta)
    assert "word vectors hold other values" in base_difference(other, delta)
    assert attached_prompt(other) is None
    apply(other, delta, force=True)
    assert attached_prompt(other) is not None
    with pytest.raises(BaseMismatch, match="word vectors are bfloat16, the soft prompt was trained on float32"):
        apply(causal_model("llama").bfloat16(), delta)
    narrow = dataclasses.replace(delta.prompt, tokens=torch.zeros(2, 3, 8), segments=torch.zeros(3, 8))
    with pytest.raises(BaseMismatch, match=r"word vectors are \[61, 16\], the soft prompt was made for \[61, 8\]"):
        apply(causal_model("llama"), Delta({}, prompt=narrow))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokens": torch.zeros(2, 2, 16)}, r"soft tokens \[2, 2, 16\] of 2 slots with 3 tokens each"),
        ({"segments": None}, "segments of a soft prompt do not fit its layout"),
        ({"segments": torch.zeros(2, 16)}, r"segments \[2, 16\] of 3 roles"),
        ({"tokens": torch.full((2, 3, 16), torch.inf)}, "'prompt/tokens' holds a value that is not a finite"),
        ({"layout": dataclasses.replace(LAYOUT, slots=("a", "a"))}, "a soft prompt with the slots a, a"),
        (
            {"layout": dataclasses.replace(LAYOUT, where="after")},
            "a soft prompt 'after' the text, and again before the value: no such place",
        ),
    ],
)
def test_contradictions(changes, told):
    prompt = trained()[1].prompt
    with pytest.raises(DeltaError, match=told):
        Delta({}, prompt=dataclasses.replace(prompt, **changes))


def test_what_cannot_be_done_with_a_prompt(tmp_path):
    model, delta = trained()
    remove_prompt(model)
    base = fuse(model)
    named = dataclasses.replace(delta, provenance=Provenance(task="text-generation", base="x"))
    for to in ("merged", "peft", "gguf"):
        with pytest.raises(InputError, match=f"an export to '{to}' is not possible: the delta has a soft prompt"):
            export(base, named, tmp_path / to, to=to)
    with pytest.raises(InputError, match="combining a is not possible"):
        task_vector(base, delta, "a")
