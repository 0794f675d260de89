"""Readers compute with what is in a file: a changed number in it changes the logits, and the model stays as it was."""

from __future__ import annotations

import pytest
import tiny
from safetensors.torch import load_file, save_file

import taskedge as te
from taskedge.delta.apply import applied
from taskedge.delta.interop.export import EXPORTS, Source
from taskedge.delta.interop.read_back import read_changes, replaced
from taskedge.delta.interop.self_check import ExportDiffers, check_rows, self_check


@pytest.fixture
def delta():
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    return te.extract(tiny.train(model))


FILES = {"lora": "adapter_model.safetensors", "peft": "adapter_model.safetensors", "merged": "model.safetensors"}


@pytest.mark.parametrize("to", [*FILES, "patch"])
def test_a_damaged_number_is_found(to, delta, tmp_path):
    model = tiny.bert()
    te.export(model, delta, tmp_path / "out", to=to)
    file = tmp_path / "out" / FILES[to] if to in FILES else tmp_path / "out"
    before = tiny.state(model)
    with applied(model, delta):
        source, rows = Source(model, delta), check_rows(model)
        self_check(model, rows, EXPORTS[to].reads(source, tmp_path / "out"), 1e-5, to)
        tensors = load_file(file)
        other = ("indices", "bias", "lora_A.weight")
        name = next(name for name in tensors if "0.output.dense" in name and not name.endswith(other))
        tensors[name].view(-1)[0] += 100
        if to == "patch":
            from taskedge.delta.interop.patch import PATCH

            file.write_bytes(PATCH.pack(PATCH.read(file).header, tensors))
        else:
            save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ExportDiffers, match=f"{to}: its logits differ from the model's by up to .* on 5 rows"):
            self_check(model, rows, EXPORTS[to].reads(source, tmp_path / "out"), 1e-5, to)
    assert tiny.same_bits(model.state_dict(), before)


def test_the_head_is_read_from_the_file(delta, tmp_path):
    model = tiny.bert()
    te.export(model, delta, tmp_path / "out", to="lora")
    _, _, parameters = read_changes(tmp_path / "out")
    assert parameters.keys() == {"classifier.weight", "classifier.bias"}


def test_weights_return_after_an_error():
    model = tiny.bert()
    before, name = tiny.state(model), "bert.pooler.dense"
    inside = replaced(model, {name: model.bert.pooler.dense.weight * 2})
    inside.__enter__()
    assert not tiny.same_bits(model.state_dict(), before)
    with pytest.raises(ZeroDivisionError):
        inside.gen.throw(ZeroDivisionError)
    assert tiny.same_bits(model.state_dict(), before)
