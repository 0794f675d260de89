"""One measured step: what it counts, and that it leaves the model unchanged."""

from __future__ import annotations

import memory_runs
import pytest
import tiny
import torch

from taskedge.training.memory.measure_step import MeasurementSession, SampleBatches, model_restored


@pytest.fixture
def run(task, brief):
    return memory_runs.run(task)


def test_state_is_that_of_entries_and_head(run):
    batches = SampleBatches(run)
    with model_restored(run.base.model):
        session = MeasurementSession(run, batches.batch(2, 5))
        trained = sum(parameter.numel() for parameter in session.trained)
        head = run.num_full_parameters
        assert session.head == 3 * 4 * head  # its gradient and two moments: the values are the base's
        entries = session.state - session.head
        assert 16 * (trained - head) <= entries <= 120 * (trained - head)  # with positions, columns, stored weights
        assert session.backup_bytes == 4 * trained
        session.close()


@pytest.mark.slow
def test_a_measured_step_restores_the_trained_values(run):
    batches = SampleBatches(run)
    with model_restored(run.base.model):
        session = MeasurementSession(run, batches.batch(1, 5))
        before = [parameter.detach().clone() for parameter in session.trained]
        memory = session.measure_memory(batches.batch(2, 5), {"recompute": "blocks", "micro_batch": 1})
        timing = session.measure_time(batches.batch(2, 5), {})
        assert session.measure_optimizer_time().wall > 0
        assert all(map(torch.equal, session.trained, before))
        assert 0 < memory.saved <= memory.peak
        assert timing.wall > 0
        session.close()


def test_modes_gradients_buffers_and_random_numbers_are_restored():
    model = tiny.bert(dropout=0.1).train()
    model.register_buffer("steps", torch.zeros(2))
    before, random_state = tiny.state(model), torch.random.get_rng_state()
    with model_restored(model):
        model.eval().requires_grad_(False)
        model.steps.add_(1)
        torch.rand(3)
    assert tiny.same_bits(before, tiny.state(model))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random_state, torch.random.get_rng_state())


def test_batches_are_led_by_the_row_of_the_wanted_length(run):
    batches = SampleBatches(run)
    assert batches.longest == max(batches.lengths) == max(map(len, (row["input_ids"] for row in run.rows)))
    made = batches.batch(3, batches.longest)["input_ids"]
    assert made.shape == (3, batches.longest)
    assert batches.batch(1, min(batches.lengths))["input_ids"].shape == (1, min(batches.lengths))
