"""Peaks of the selection and of the evaluation."""

from __future__ import annotations

import memory_runs
import pytest

from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.memory.headroom import MemoryHeadroom
from taskedge.training.memory.measure_phases import measure_evaluation, measure_selection
from taskedge.training.memory.measure_step import SampleBatches


def test_the_selection_of_a_large_batch_is_predicted(task, brief):
    run = memory_runs.run(task, rule="fisher", batch_size=32)
    batches = SampleBatches(run)
    line = measure_selection(run, batches, MemoryHeadroom(None))
    with LiveBytes() as live:
        run.select([batches.batch(32, batches.longest)])
    assert line.at(32) == pytest.approx(live.peak, rel=0.15)


def test_phases_that_a_run_does_not_have(task, brief):
    run = memory_runs.run(task, form="lora", rank=2, per_neuron=None)
    assert measure_selection(run, SampleBatches(run), MemoryHeadroom(None)) is None
    assert measure_evaluation(run, MemoryHeadroom(None)) is None


def test_two_rows_are_tried_only_with_headroom(task, brief):
    run = memory_runs.run(task, eval=task / "eval.csv")
    headroom = MemoryHeadroom(None)
    assert [rows for rows, _ in measure_evaluation(run, headroom).points] == [1, 2]
    headroom.fits = lambda num_bytes: False
    assert [rows for rows, _ in measure_evaluation(run, headroom).points] == [1]
