"""The ONNX folder: the graph with the task, checked, and the same task as int8."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop.onnx_graph import run_graph, session
from taskedge.errors import UnknownName

pytest.importorskip("onnxruntime")


def delta_of(make):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], columns=2))
    return te.extract(tiny.train(model))


def test_the_graph_has_the_task(tmp_path):
    delta = delta_of(tiny.vit)
    done = te.export(tiny.vit(), delta, tmp_path / "o", to="onnx")
    assert done.details["checked_rows"] == 5
    assert done.details["largest_difference"] <= 1e-4
    batch = {"pixel_values": tiny.batch(tiny.vit(), rows=7)["pixel_values"]}
    found = run_graph(session(tmp_path / "o" / "model.onnx"))(batch)
    with torch.no_grad():
        assert (found - te.apply(tiny.vit(), delta)(**batch).logits).abs().max() <= 1e-4
        assert (found - tiny.vit()(**batch).logits).abs().max() > 1e-3


def test_int8_is_smaller_and_says_how_far_it_is_off(tmp_path):
    delta = delta_of(tiny.vit)
    done = te.export(tiny.vit(), delta, tmp_path / "o", to="onnx", quantize="int8")
    assert done.details["weights"] == "int8"
    assert done.details["largest_difference_fp32"] <= 1e-4 < done.details["largest_difference"]
    assert 0 < done.details["same_answers"] <= 1
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["model.onnx", "task.json"]
    with pytest.raises(UnknownName, match="unknown quantization 'int4'"):
        te.export(tiny.vit(), delta, tmp_path / "p", to="onnx", quantize="int4")
