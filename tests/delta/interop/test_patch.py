"""A patch, written into the base's checkpoint with safetensors and torch only, gives the merged checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

import taskedge as te
from taskedge.delta.interop.patch import FORMAT, checkpoint_names
from taskedge.errors import InputError

MAKES = {"bert": tiny.bert, "gpt2": tiny.gpt2, "vit": tiny.vit}


def tuned(make, **options):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], **({"budget": "0.5%"} | options)))
    return te.extract(tiny.train(model))


def put_in(patch, state):
    """Apply a patch as a reader without taskedge does: index_put of absolute values."""
    for name in {name.rpartition(".")[0] for name in patch}:
        flat, values = state[name].view(-1), patch[f"{name}.values"]
        if f"{name}.indices" in patch:
            flat.index_put_((patch[f"{name}.indices"].long(),), values)
        else:
            flat.copy_(values)
    return state


@pytest.mark.parametrize(
    "options", [{}, {"allocation": "global"}, {"allocation": "per_layer"}, {"budget": None, "per_neuron": 1}]
)
@pytest.mark.parametrize("make", list(MAKES.values()), ids=list(MAKES))
def test_the_base_checkpoint_and_the_patch_are_the_merged_checkpoint(make, options, tmp_path):
    delta = tuned(make, **options)
    make().save_pretrained(tmp_path / "base")
    base = type(make()).from_pretrained(tmp_path / "base")
    te.export(base, delta, tmp_path / "merged", to="merged")
    done = te.export(base, delta, tmp_path / "patch", to="patch")
    patch = load_file(tmp_path / "patch")
    found = put_in(patch, load_file(tmp_path / "base" / "model.safetensors"))
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert tiny.same_bits(found, expected)
    assert not tiny.same_bits(load_file(tmp_path / "base" / "model.safetensors"), expected)
    held = sum(tensor.numel() for name, tensor in patch.items() if name.endswith(".values"))
    assert held == delta.num_entries + delta.num_full_parameters
    assert done.details == {
        "tensors": len([name for name in patch if name.endswith(".values")]),
        "entries": delta.num_entries,
        "whole_parameters": delta.num_full_parameters,
        "checked_rows": 5,
        "largest_difference": 0.0,
        "same_answers": 1.0,
    }


def test_a_low_rank_product_replaces_all_values_of_its_weight(tmp_path):
    model = tiny.gpt2()
    support = te.select(model, [tiny.batch(model)], per_neuron=1)
    name, *_ = support.linears
    left = {other: linear for other, linear in support.linears.items() if other != name}
    te.install(model, dataclasses.replace(support, linears=left, low_rank={name: 2}))
    delta = te.extract(tiny.train(model))
    done = te.export(tiny.gpt2(), delta, tmp_path / "patch", to="patch")
    patch = load_file(tmp_path / "patch")
    assert f"{name}.weight.indices" not in patch
    assert done.details["whole_parameters"] == delta.num_full_parameters + len(patch[f"{name}.weight.values"])
    found = put_in(patch, tiny.gpt2().state_dict())
    assert tiny.same_bits(found, te.apply(tiny.gpt2(), delta).state_dict())


@pytest.mark.parametrize("make", [*MAKES.values(), tiny.mlp], ids=[*MAKES, "mlp"])
def test_the_state_dict_takes_it_too(make, tmp_path):
    """Models made from a config store their tensors under the same names."""
    delta = tuned(make, budget=None, per_neuron=1)
    te.export(make(), delta, tmp_path / "patch", to="patch")
    found = make()
    names = {stored: name for name, stored in checkpoint_names(found, found.state_dict()).items()}
    patch = {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in load_file(tmp_path / "patch").items()
    }
    put_in(patch, found.state_dict())
    assert tiny.same_bits(found.state_dict(), te.apply(make(), delta).state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_are_in_the_dtype_of_the_base(dtype, tmp_path):
    def make():
        return tiny.bert().to(dtype)

    delta = tuned(make)
    te.export(make(), delta, tmp_path / "patch", to="patch")
    patch, state = load_file(tmp_path / "patch"), make().state_dict()
    assert {tensor.dtype for name, tensor in patch.items() if name.endswith(".values")} == {dtype}
    assert tiny.same_bits(put_in(patch, state), te.apply(make(), delta).state_dict())


def test_the_requirements_of_the_server_are_met(tmp_path):
    """vLLM's CheckpointWeightPatch: one dimension, int32, in range, none twice, no NaN, and the full shape."""
    delta = tuned(tiny.gpt2)
    te.export(tiny.gpt2(), delta, tmp_path / "patch", to="patch", base="a/base")
    with safe_open(tmp_path / "patch", framework="pt") as file:
        manifest = json.loads(file.metadata()["taskedge"])
    assert manifest["format"] == FORMAT
    assert manifest["base"] == "a/base"
    patch, state = load_file(tmp_path / "patch"), tiny.gpt2().state_dict()
    for name, shape in manifest["shapes"].items():
        assert shape == list(state[name].shape)
        values, indices = patch.pop(f"{name}.values"), patch.pop(f"{name}.indices", None)
        assert values.dim() == 1
        assert values.isfinite().all()
        if indices is None:
            assert len(values) == state[name].numel()
        else:
            assert indices.dtype == torch.int32
            assert len(indices) == len(values)
            assert indices[0] >= 0
            assert indices[-1] < state[name].numel()
            assert (indices.diff() > 0).all()
    assert not patch


def test_names_are_those_of_the_checkpoint(tmp_path):
    """A classifier on a checkpoint of the bare encoder: names in the file have no ``bert.``."""
    bare = tiny.bert().bert
    bare.save_pretrained(tmp_path / "base")
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    names = checkpoint_names(base, base.state_dict())
    base.save_pretrained(tmp_path / "saved")
    assert set(names.values()) == set(load_file(tmp_path / "saved" / "model.safetensors"))


def test_a_tensor_that_is_stored_otherwise_is_refused(monkeypatch, tmp_path):
    def regrouped(model, state):
        return {name: tensor.t().contiguous() if "query" in name else tensor for name, tensor in state.items()}

    monkeypatch.setattr(transformers.core_model_loading, "revert_weight_conversion", regrouped)
    with pytest.raises(InputError, match=r"stores '.*query.weight' in another layout"):
        te.export(tiny.bert(), tuned(tiny.bert, budget=None, per_neuron=1), tmp_path / "patch", to="patch")
    assert not list(tmp_path.iterdir())


def test_the_reader_in_the_docs(monkeypatch, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "interoperability.md").read_text(encoding="utf-8")
    (reader,) = re.findall(r"^```python\n(import torch.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tiny.gpt2().save_pretrained("base")
    base = transformers.GPT2ForSequenceClassification.from_pretrained("base")
    delta = tuned(tiny.gpt2)
    te.export(base, delta, "merged", to="merged")
    te.export(base, delta, "task.patch.safetensors", to="patch")
    known = {}
    exec(reader, known)
    assert tiny.same_bits(known["weights"], load_file("merged/model.safetensors"))
