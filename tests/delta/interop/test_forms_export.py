"""Exports of the forms that are not entries of a selection: each is right in the other program, or refused."""

from __future__ import annotations

import peft
import pytest
import tiny
import torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import taskedge as te
from taskedge.delta.file import load, save
from taskedge.delta.interop.lora_rank import lora_ranks
from taskedge.errors import InputError
from taskedge.forms.dash import add_directions, choose_directions, dash_layers
from taskedge.forms.filtered import add_filters
from taskedge.forms.gated_entries import keep_open_columns
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.taps import layer_gates
from taskedge.training.lora import lora_support


def close_half(model):
    """Close the gate of every other layer."""
    with torch.no_grad():
        for gate in list(layer_gates(model).values())[::2]:
            gate.score.fill_(0.0)
    keep_open_columns(model)
    return model


def taps():
    return close_half(tiny.train(install_taps(tiny.bert(), taps_support(tiny.bert()))))


def sparse_taps():
    support = te.select(tiny.bert(), [tiny.batch(tiny.bert())], per_neuron=1)
    return close_half(tiny.train(te.install(tiny.bert(), support, form="sparse_taps")))


def dash():
    model = te.install(tiny.bert(), lora_support(tiny.bert(), 2, None), alpha=4)
    add_directions(model, 3)
    tiny.train(model)
    choose_directions(model)
    tiny.train(model)
    assert all(bool(layer.product.c.any()) for layer in dash_layers(model).values())
    return model


def convolutions():
    return tiny.train(install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task"))


def filtered():
    model = te.install(tiny.bert(), lora_support(tiny.bert(), 2, None))
    add_filters(model, "cosine", 2)
    return tiny.train(model)


def sparse_plus_low_rank():
    support = te.select(tiny.bert(), [tiny.batch(tiny.bert())], per_neuron=1)
    return tiny.train(te.install(tiny.bert(), support, form="sparse_plus_low_rank", rank=2, alpha=3))


FORMS = {
    "taps": taps,
    "sparse_taps": sparse_taps,
    "dash": dash,
    "sparse_plus_low_rank": sparse_plus_low_rank,
    "convolutions": convolutions,
}
BASES = dict.fromkeys(FORMS, tiny.bert) | {"convolutions": tiny.resnet}


@pytest.fixture(scope="module", params=FORMS)
def trained(request, tmp_path_factory):
    """The base's maker, a delta of the form from a file, and the logits of the model that was trained."""
    model = FORMS[request.param]()
    batch = tiny.batch(model, rows=4, seed=5)
    path = tmp_path_factory.mktemp("delta") / "task.safetensors"
    save(te.extract(model), path)
    make = BASES[request.param]
    logits = tiny.logits(model.eval(), batch)
    assert (logits - tiny.logits(make().eval(), batch)).abs().max() > 1e-3
    return make, load(path), batch, logits


def checked(done, tolerance=1e-4):
    """Check that the self-check ran."""
    assert done.details["checked_rows"] > 0
    assert done.details["largest_difference"] <= tolerance


def test_merged(trained, tmp_path):
    make, delta, batch, logits = trained
    checked(te.export(make(), delta, tmp_path / "merged", to="merged"))
    auto = AutoModelForImageClassification if make is tiny.resnet else AutoModelForSequenceClassification
    found = tiny.logits(auto.from_pretrained(tmp_path / "merged").eval(), batch)
    assert (found - logits).abs().max() <= 1e-5


@pytest.mark.parametrize("to", ["peft", "lora"])
def test_peft(trained, to, tmp_path):
    make, delta, batch, logits = trained
    checked(te.export(make(), delta, tmp_path / "adapter", to=to))
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    assert (tiny.logits(loaded, batch) - logits).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["shira", "supertuning"])
def test_a_product_beside_entries_has_no_sparse_layout(kind, tmp_path):
    delta = te.extract(sparse_plus_low_rank())
    with pytest.raises(InputError, match="changed by a low-rank product: export as PEFT type 'lora'"):
        te.export(tiny.bert(), delta, tmp_path / "out", to="peft", peft_type=kind)
    assert lora_ranks(delta) == {
        name: 2 + min(len(one.rows.unique()), len(one.columns.unique())) for name, one in delta.linears.items()
    }


@pytest.mark.slow
def test_onnx(trained, tmp_path):
    make, delta, _, _ = trained
    checked(te.export(make(), delta, tmp_path / "onnx", to="onnx"))


@pytest.mark.slow
def test_onnx_adapter(trained, tmp_path):
    make, delta, _, _ = trained
    if make is tiny.resnet:
        with pytest.raises(InputError, match="is a Conv2d, and a graph with adapters adds products to linears only"):
            te.export(make(), delta, tmp_path / "onnx", to="onnx-adapter")
    else:
        checked(te.export(make(), delta, tmp_path / "onnx", to="onnx-adapter"))


def test_patch(trained, tmp_path):
    make, delta, _, _ = trained
    done = te.export(make(), delta, tmp_path / "patch", to="patch")
    checked(done, tolerance=0.0)


@pytest.mark.parametrize("to", ["merged", "lora", "peft", "patch", "gguf", "gguf-lora", "onnx", "onnx-adapter"])
def test_a_filter_is_refused_by_every_export(to, tmp_path):
    with pytest.raises(InputError, match="filter"):
        te.export(tiny.bert(), te.extract(filtered()), tmp_path / "out", to=to)
    assert not any(tmp_path.iterdir())
