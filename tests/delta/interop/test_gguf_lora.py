"""An adapter in GGUF gives our logits in llama.cpp itself, where the wheel xllamacpp is installed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import tiny_gguf
import torch

import taskedge as te
from benchmarks.interop import llama_runtime
from taskedge.delta.apply import applied
from taskedge.delta.interop.export import EXPORTS, Source
from taskedge.delta.interop.self_check import ExportDiffers, check_rows, self_check
from taskedge.errors import InputError

gguf = pytest.importorskip("gguf")


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits.numpy()


def in_llama_cpp(ids, *files):
    if not llama_runtime.available():
        pytest.skip("xllamacpp is not installed")
    runtime = llama_runtime.Llama(*files)
    try:
        return np.stack([runtime.logits(row.tolist()) for row in ids])
    finally:
        runtime.close()


@pytest.mark.parametrize(
    "options", [{"columns": 3}, {"budget": "2%", "allocation": "global"}], ids=["columns", "uneven"]
)
@pytest.mark.parametrize("kind", list(tiny_gguf.CONFIGS))
def test_llama_cpp_gives_our_logits(kind, options, tmp_path):
    base = tiny_gguf.write_base(kind, tmp_path / "base.gguf")
    delta = tiny_gguf.tuned(kind, **options)
    done = te.export(tiny_gguf.model(kind), delta, tmp_path / "a.gguf", to="gguf-lora")
    assert done.details["largest_difference"] <= 1e-5
    ids = tiny_gguf.ids(3, 11, seed=5)
    plain, ours = logits(tiny_gguf.model(kind), ids), logits(te.apply(tiny_gguf.model(kind), delta), ids)
    moved = np.abs(ours - plain).max()
    assert moved > 0.3
    found = in_llama_cpp(ids, base, tmp_path / "a.gguf")
    assert np.abs(found - ours).max() <= 0.02 * moved
    assert np.abs(in_llama_cpp(ids, base) - plain).max() <= 0.02 * moved


def test_rank_and_alpha(tmp_path):
    delta = tiny_gguf.tuned("llama", columns=3)
    te.export(tiny_gguf.model("llama"), delta, tmp_path / "a.gguf", to="gguf-lora")
    reader = gguf.GGUFReader(str(tmp_path / "a.gguf"))
    said = {name: reader.fields[name].contents() for name in ("general.type", "adapter.type", "adapter.lora.alpha")}
    assert said == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 3.0}
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert shapes["blk.0.attn_k.weight.lora_a"] == (3, 32)
    assert shapes["blk.0.attn_k.weight.lora_b"] == (16, 3)
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)


def test_the_check_reads_the_file(tmp_path, monkeypatch):
    """Rows in transformers' order would be wrong in llama.cpp; the check undoes the order, so it finds them."""
    model, delta = tiny_gguf.model("llama"), tiny_gguf.tuned("llama", columns=3)
    with monkeypatch.context() as patched:
        patched.setattr("taskedge.delta.interop.gguf_names.GgufNames.to_gguf", lambda self, linear, rows: rows)
        te.export(model, delta, tmp_path / "a.gguf", to="gguf-lora", check=False)
    with applied(model, delta):
        run = EXPORTS["gguf-lora"].reads(Source(model, delta), tmp_path / "a.gguf")
        with pytest.raises(ExportDiffers):
            self_check(model, check_rows(model), run, 1e-5, "gguf-lora")


def test_parameters_in_full_and_other_models_are_refused(tmp_path):
    delta = tiny_gguf.tuned("llama", columns=3)
    more = te.Delta(delta.linears, {"model.norm.weight": torch.ones(32)})
    with pytest.raises(InputError, match=r"1 parameters were trained in full \('model.norm.weight' first\)"):
        te.export(tiny_gguf.model("llama"), more, tmp_path / "a.gguf", to="gguf-lora")
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], columns=2), trainable=[])
    with pytest.raises(InputError, match="has no GGUF export"):
        te.export(tiny.bert(), te.extract(tiny.train(model)), tmp_path / "a.gguf", to="gguf-lora")
    assert not list(tmp_path.iterdir())
