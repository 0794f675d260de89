"""Predictions from small steps hold for large ones, and measuring leaves the run unchanged."""

from __future__ import annotations

import random
from contextlib import closing

import memory_runs
import numpy as np
import pytest
import tiny_task
import torch
from tiny import bits

from taskedge.profiling.process_memory import resident_bytes
from taskedge.training.memory import headroom
from taskedge.training.memory.measure_step import MeasurementSession, model_restored
from taskedge.training.memory.options import RECOMPUTE_OPTIONS
from taskedge.training.memory.profiler import MemoryProfiler
from taskedge.training.run import prepare_run
from taskedge.training.tune_config import TuneConfig


def snapshot(run):
    """Return everything in a run that measuring could change."""
    model = run.base.model
    return (
        {name: bits(tensor).tolist() for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: (type(module), module.training) for name, module in model.named_modules()},
        torch.random.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),
    )


FORMS = {
    "sparse": {},
    "gradient rule": {"rule": "gradient"},
    "spt": {"rule": "spt", "per_neuron": None, "budget": "2%"},
    "sparse LoRA": {"form": "sparse_lora", "rank": 2},
    "sparse plus low rank": {"form": "sparse_plus_low_rank", "rank": 2},
    "LoRA": {"form": "lora", "rank": 2, "per_neuron": None},
    "mezo": {"optimizer": "mezo", "lr": 1e-3},
    "rotate": {"rotate": 2},
    "depth": {"depth": 1},
    "bf16 base": {"dtype": "bf16"},
    "autocast": {"bf16": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_measuring_leaves_the_run_unchanged(task, brief, form):
    run = memory_runs.run(task, eval=task / "eval.csv", **FORMS[form])
    run.eval_rows()
    before = snapshot(run)
    with closing(MemoryProfiler(run).iter_groups()) as groups:
        measured = [next(groups)]
        measured += [next(groups)] if form == "sparse" else []
    assert snapshot(run) == before
    for cost in (cost for group in measured for cost in group.costs):
        assert cost.memory.peak > cost.memory.process > 0
        assert cost.seconds > 0
        assert cost.steps == 12


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "inputs", "blocks"])
def test_bytes_of_a_large_step_are_predicted(task, brief, recompute):
    run = memory_runs.run(task, recompute=recompute, batch_size=32)
    with closing(MemoryProfiler(run).iter_groups()) as groups:
        whole = next(groups).costs[0]
    profiler = MemoryProfiler(run)
    with model_restored(run.base.model):
        session = MeasurementSession(run, profiler.batches.batch(1, 12))
        measured = session.measure_memory(profiler.batches.batch(32, profiler.batches.longest), {})
        session.close()
    assert whole.memory.saved + whole.memory.temporary == pytest.approx(measured.peak, rel=0.08)
    assert whole.memory.saved == pytest.approx(measured.saved, rel=0.08)


@pytest.mark.slow
def test_fewer_rows_and_recomputing_need_less(task, brief):
    run = memory_runs.run(task)
    with closing(MemoryProfiler(run).iter_groups()) as groups:
        plain, inputs, blocks = (next(groups).costs for _ in range(3))
    runtimes = [cost.memory.runtime for cost in (*plain[1:], *inputs, *blocks)]
    assert max(runtimes) - min(runtimes) < 30e6  # whatever was loaded in between to measure the first of them
    step = [cost.memory.saved + cost.memory.temporary for cost in plain]
    assert [cost.changes.get("micro_batch") for cost in plain] == [None, 8, 4, 2, 1]
    assert step[1:] == sorted(step[1:], reverse=True)
    assert blocks[0].memory.saved < plain[0].memory.saved
    assert inputs[0].changes == {RECOMPUTE_OPTIONS[0].setting: RECOMPUTE_OPTIONS[0].value}


@pytest.mark.slow
def test_steps_without_headroom_are_not_tried(task, brief, monkeypatch):
    run = memory_runs.run(task)
    monkeypatch.setattr(headroom, "EXCEEDED_BUDGET_FACTOR", 0)
    profiler = MemoryProfiler(run, 1)
    monkeypatch.setattr(MeasurementSession, "measure_memory", lambda *_: pytest.fail("a step was made"))
    with closing(profiler.iter_groups()) as groups:
        assert list(groups) == []
    assert not profiler.headroom.fits(1)
    assert MemoryProfiler(run, resident_bytes() + 2**30).headroom.fits(2**20)


@pytest.mark.slow
def test_small_steps_are_tried_even_if_loading_exceeded_the_budget(task, brief, monkeypatch):
    profiler = MemoryProfiler(memory_runs.run(task), 1)
    monkeypatch.setattr(profiler.headroom, "set_baseline", lambda: None)
    profiler.headroom.baseline_bytes = 2 * resident_bytes()
    with closing(profiler.iter_groups()) as groups:
        assert next(groups).costs
    assert profiler.headroom.fits(profiler.headroom.baseline_bytes // 50)
    assert not profiler.headroom.fits(2 * profiler.headroom.baseline_bytes)


@pytest.mark.slow
def test_images_and_generation_are_predicted_too(task, tmp_path, brief):
    pictures = tiny_task.images(tmp_path / "pictures", 8)
    vit = tiny_task.vit(tmp_path / "vit")
    made = TuneConfig(model=str(vit), train=pictures, per_neuron=1, batch_size=4, threads=1)
    talk = tiny_task.table(tmp_path / "talk.csv", tiny_task.dialogs(16), ("prompt", "response"))
    llama = tiny_task.llama(tmp_path / "llama")
    more = TuneConfig(model=str(llama), train=talk, eval=talk, per_neuron=1, batch_size=4, threads=1)
    for config in (made, more):
        run = prepare_run(config, memory_runs.quiet)
        run.load()
        with closing(MemoryProfiler(run).iter_groups()) as groups:
            costs = next(groups).costs
        assert costs[0].memory.saved > costs[-1].memory.saved > 0
