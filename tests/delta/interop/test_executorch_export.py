"""A program of ExecuTorch gives the logits of the model; its package pins others, so it is not among those of tests."""

from __future__ import annotations

import importlib
import json

import pytest
import tiny
import torch

import taskedge as te
from taskedge.delta.interop.executorch_export import executorch_module, executorch_reader
from taskedge.delta.interop.export import Source
from taskedge.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.bert, tiny.vit])
def test_its_logits_are_those_of_the_model(tmp_path, make):
    pytest.importorskip("executorch.exir")
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], columns=2))
    delta = te.extract(tiny.train(model))
    done = te.export(make(), delta, tmp_path / "o", to="executorch")
    assert done.details["checked_rows"] > 0
    assert done.details["largest_difference"] <= 1e-4
    model = te.apply(make(), delta).eval()
    run = executorch_reader(Source(model, delta), tmp_path / "o")
    for rows, tokens in ((3, 6), (1, 9), (20, 4)):  # the last in two parts
        batch = {key: value for key, value in tiny.batch(model, rows, tokens).items() if key != "labels"}
        with torch.no_grad():
            torch.testing.assert_close(run(batch), model(**batch).logits, atol=1e-4, rtol=0)
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["model.pte", "task.json"]
    assert json.loads((tmp_path / "o" / "task.json").read_text())["max_batch"] == 16


def test_a_missing_package_is_named(monkeypatch):
    def missing(name, *_):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"No module named 'executorch.exir'\): pip install 'taskedge\[executorch\]'"):
        executorch_module("exir")
