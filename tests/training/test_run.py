"""How many rows the selection looks at at once, and that it chooses the same by parts."""

from __future__ import annotations

import pytest
import torch

from taskedge.training.run import Run
from taskedge.training.tune_config import TuneSettings


def run(task, **more):
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    settings = fixed | {"per_neuron": 1, "batch_size": 8, "calibration": 3, "threads": 1} | more
    return Run(TuneSettings(**settings), lambda _: None)


def seen(made, monkeypatch):
    """Rows of each calibration batch."""
    sizes = []
    monkeypatch.setattr(Run, "choose", lambda self, batches: sizes.extend(len(batch["input_ids"]) for batch in batches))
    made.select()
    return sizes


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, [8] * 3),
        ({"micro_batch": 4}, [4] * 6),
        ({"micro_batch": 4, "rule": "gradient"}, [8] * 3),
        ({"micro_batch": 4, "rule": "fisher"}, [8] * 3),
    ],
    ids=str,
)
def test_the_selection_sees_the_same_rows_in_micro_batches(task, monkeypatch, given, sizes):
    assert seen(run(task, **given), monkeypatch) == sizes


def test_parts_choose_what_whole_batches_do(task):
    whole, parts = run(task).select(), run(task, micro_batch=2).select()
    for name, linear in whole.linears.items():
        assert torch.equal(linear.columns, parts.linears[name].columns)
        torch.testing.assert_close(linear.input_rms, parts.linears[name].input_rms)


def test_a_changed_run_shares_all_but_what_changes(task):
    made = run(task)
    made.rows, made.whole  # noqa: B018
    other = made.changed({"micro_batch": 2})
    assert other.base is made.base
    assert other.rows is made.rows
    assert other.settings.micro_batch == 2
    assert made.settings.micro_batch is None
    half = made.changed({"dtype": "bf16"})
    assert half.rows is made.rows
    assert next(half.base.model.parameters()).dtype == torch.bfloat16
    made.forget_base()
    assert "base" not in vars(made)
