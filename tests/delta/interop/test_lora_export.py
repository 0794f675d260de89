"""One rank, alpha equal to it, fp32: the weights are right for readers that scale in any of the known ways."""

from __future__ import annotations

import dataclasses
import json

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file

import taskedge as te
from taskedge.errors import InputError


def delta_of(kind):
    model = tiny.bert()
    options = {"budget": "1%"} if kind == "uneven" else {"per_neuron": 1}
    support = te.select(model, [tiny.batch(model)], **options)
    alpha = None
    if kind != "uneven":
        products = {name: 2 + place % 2 for place, name in enumerate(support.linears) if "query" in name}
        left = {} if kind == "products" else {n: s for n, s in support.linears.items() if n not in products}
        support, alpha = dataclasses.replace(support, linears=left, low_rank=products), 6.0
    te.install(model, support, alpha=alpha)
    return te.extract(tiny.train(model))


@pytest.mark.parametrize("kind", ["uneven", "products", "mixed"])
def test_no_reader_needs_alpha_or_patterns(kind, tmp_path):
    """With ``scale`` 1, with one alpha/r, and with alpha over a tensor's own rank: the same weights."""
    delta = delta_of(kind)
    done = te.export(tiny.bert(), delta, tmp_path / "a", to="lora")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == done.details["rank"]
    assert "rank_pattern" not in config
    assert "alpha_pattern" not in config
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    expected, base = te.apply(tiny.bert(), delta).state_dict(), tiny.bert().state_dict()
    names = [name[len("base_model.model.") : -len(".lora_A.weight")] for name in stored if "lora_A" in name]
    assert set(names) == set(delta.linears) | set(delta.low_rank)
    for name in names:
        a, b = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert (a.dtype, b.dtype, a.shape[0], b.shape[1]) == (torch.float32, torch.float32, config["r"], config["r"])
        torch.testing.assert_close(base[f"{name}.weight"] + b @ a, expected[f"{name}.weight"], rtol=1e-5, atol=1e-6)


def test_peft_gives_the_same_logits_and_the_self_check_says_so(tmp_path):
    delta = delta_of("mixed")
    done = te.export(tiny.bert(), delta, tmp_path / "a", to="lora")
    ours, theirs = te.apply(tiny.bert(), delta), peft.PeftModel.from_pretrained(tiny.bert(), tmp_path / "a").eval()
    batch = tiny.batch(ours)
    with torch.no_grad():
        assert (tiny.logits(theirs, batch) - tiny.logits(ours, batch)).abs().max() <= 1e-5
    assert done.details["checked_rows"] == 5
    assert done.details["largest_difference"] <= 1e-5
    assert "vLLM rejects adapters with modules_to_save" in done.details["note"]


def test_a_rank_over_the_limit_is_refused(tmp_path):
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], columns=5))
    delta = te.extract(tiny.train(model))
    with pytest.raises(InputError, match=r"12 of 12 linears need a rank over 4, '.*' the most \(5\).*--columns 4"):
        te.export(tiny.bert(), delta, tmp_path / "a", to="lora", max_rank=4)
    assert not list(tmp_path.iterdir())
    assert te.export(tiny.bert(), delta, tmp_path / "a", to="lora", max_rank=5).details["rank"] == 5
