"""The merged GGUF file is the base's with other numbers: all else byte for byte, and llama.cpp gives our logits."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_gguf
import torch

import taskedge as te
from benchmarks.interop import llama_runtime
from taskedge.errors import InputError, UnknownName

gguf = pytest.importorskip("gguf")


@pytest.fixture
def base(tmp_path):
    return tiny_gguf.write_base("llama", tmp_path / "base.gguf")


@pytest.fixture(scope="module")
def delta():
    return tiny_gguf.tuned("llama", columns=3)


@pytest.mark.parametrize(("wanted", "bar"), [("same", 0.02), ("f16", 0.02), ("q8_0", 0.25)])
def test_llama_cpp_gives_our_logits(wanted, bar, base, delta, tmp_path):
    model, ids = tiny_gguf.model("llama"), tiny_gguf.ids(2, 9, seed=5)
    te.export(model, delta, tmp_path / "m.gguf", to="gguf", gguf_base=base, gguf_type=wanted)
    if not llama_runtime.available():
        pytest.skip("xllamacpp is not installed")
    with torch.no_grad():
        plain, ours = model(ids).logits.numpy(), te.apply(model, delta)(ids).logits.numpy()
    runtime = llama_runtime.Llama(tmp_path / "m.gguf")
    found = np.stack([runtime.logits(row.tolist()) for row in ids])
    runtime.close()
    assert np.abs(found - ours).max() <= bar * np.abs(ours - plain).max()


def test_all_else_is_the_base(base, delta, tmp_path):
    te.export(tiny_gguf.model("llama"), delta, tmp_path / "m.gguf", to="gguf", gguf_base=base)
    before, after = (gguf.GGUFReader(str(path)) for path in (base, tmp_path / "m.gguf"))
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.fields[name].contents() == field.contents()
    old, new = ({t.name: t.data for t in reader.tensors} for reader in (before, after))
    assert list(old) == list(new)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {name for name in old if name.startswith("blk.") and "norm" not in name}


def test_a_base_of_another_type_keeps_it(delta, tmp_path):
    base = tiny_gguf.write_base("llama", tmp_path / "q.gguf", quantized="Q8_0")
    done = te.export(tiny_gguf.model("llama"), delta, tmp_path / "m.gguf", to="gguf", gguf_base=base)
    assert done.details["types"] == ["Q8_0"]
    assert 1e-5 < done.details["largest_difference"] < 1


def test_what_is_refused(base, delta, tmp_path):
    model = tiny_gguf.model("llama")
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    other = tiny_gguf.write_base("qwen2", tmp_path / "other.gguf")
    for options, error, told in (
        ({}, InputError, "name it with --gguf-base"),
        ({"gguf_base": tmp_path / "no.gguf"}, InputError, "cannot be read as a GGUF file"),
        ({"gguf_base": other}, InputError, "architecture 'qwen2', the base is 'llama'"),
        ({"gguf_base": base, "gguf_type": "q4"}, UnknownName, "unknown GGUF type 'q4'"),
    ):
        with pytest.raises(error, match=told):
            te.export(model, delta, tmp_path / "m.gguf", to="gguf", **options)
    wrong = tiny_gguf.model("llama")
    wrong.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    with pytest.raises(InputError, match=r"differs from the base's by 50% of its norm: it is of another base"):
        te.export(wrong, delta, tmp_path / "m.gguf", to="gguf", gguf_base=base, force=True)
    assert not (tmp_path / "m.gguf").exists()
