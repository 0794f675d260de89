"""bf16 is taken where it pays and was measured; the reason is stated in any case."""

from __future__ import annotations

import pytest
from tiny_task import tune_config

from taskedge.profiling.arithmetic_speed import GemmSpeeds
from taskedge.training import fastest_dtype as fast
from taskedge.training.run import prepare_run
from taskedge.training.run_provenance import training_provenance


@pytest.mark.parametrize(
    ("task", "bf16", "dtype", "reason"),
    [
        ("text-classification", 192e9, "bf16", "the base is loaded in bf16, whose products run 2.8 times as fast"),
        ("text-classification", 70e9, "auto", "bf16 does not pay on this processor (fp32 69 GFLOP/s, bf16 70 GFLOP/s)"),
        ("image-classification", 192e9, "auto", "not for image-classification, or they lost accuracy"),
    ],
)
def test_the_choice_and_its_reason(monkeypatch, task, bf16, dtype, reason):
    monkeypatch.setattr(fast, "processor_speeds", lambda: GemmSpeeds(69e9, bf16))
    said = []
    assert fast.fastest_dtype(task, said.append) == dtype
    assert len(said) == 1
    assert reason in said[0]


def test_a_run_records_what_was_taken(task, tmp_path, monkeypatch):
    monkeypatch.setattr(fast, "processor_speeds", lambda: GemmSpeeds(69e9, 192e9))
    said = []
    run = prepare_run(tune_config(task, tmp_path / "o", dtype="fastest"), said.append)
    assert run.config.dtype == "bf16"
    run.load()
    assert next(run.base.model.parameters()).dtype.itemsize == 2
    assert training_provenance(run, run.select(), 1)["dtype"] == "bf16"
    assert prepare_run(tune_config(task, tmp_path / "o"), str).config.dtype == "auto"
