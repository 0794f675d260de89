"""A graph of OpenVINO gives the logits of the model for any batch and length; the package is optional."""

from __future__ import annotations

import importlib

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop import openvino_export
from taskedge.delta.interop.export import Source
from taskedge.delta.interop.openvino_export import openvino_reader
from taskedge.errors import InputError


def tuned(make):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], columns=2))
    return te.extract(tiny.train(model))


@pytest.mark.parametrize("make", [tiny.bert, tiny.vit, tiny.gpt2])
def test_its_logits_are_those_of_the_model(tmp_path, make):
    pytest.importorskip("openvino")
    delta = tuned(make)
    done = te.export(make(), delta, tmp_path / "o", to="openvino")
    assert done.details["checked_rows"] > 0
    assert done.details["largest_difference"] <= 1e-4
    model = te.apply(make(), delta).eval()
    run = openvino_reader(Source(model, delta), tmp_path / "o")
    for rows, tokens in ((3, 6), (1, 9)):
        batch = {key: value for key, value in tiny.batch(model, rows, tokens).items() if key != "labels"}
        with torch.no_grad():
            torch.testing.assert_close(run(batch), model(**batch).logits, atol=1e-4, rtol=0)
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["model.bin", "model.xml", "task.json"]


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    def missing(name, *_):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match="pip install 'taskedge\\[openvino\\]'"):
        openvino_export.openvino_package()
