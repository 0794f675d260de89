"""What is predicted from small steps is what large ones need, and nothing of the run is touched by it."""

from __future__ import annotations

import random
from contextlib import closing

import numpy as np
import pytest
import tiny_task
import torch
from tiny import bits

from taskedge.profiling.process_memory import resident_bytes
from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.memory import headroom as room
from taskedge.training.memory import profiler as estimate
from taskedge.training.memory.measure_step import Session, undisturbed
from taskedge.training.memory.options import LOOPS
from taskedge.training.memory.profiler import Ladder
from taskedge.training.run import Run
from taskedge.training.tune_config import TuneSettings


def quiet(_: str) -> None:
    pass


@pytest.fixture
def brief(monkeypatch):
    """One timed pass: what is timed decides no test. Nor does the peak of tests that ran in this process before."""
    monkeypatch.setattr(estimate, "BRIEF", 0.0)
    monkeypatch.setattr(room, "lifetime_peak_bytes", lambda _: resident_bytes())
    monkeypatch.setattr("taskedge.training.memory.measure_step.LONG", 0.0)


def settings(task, **more) -> TuneSettings:
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    known = fixed | {"per_neuron": 1, "batch_size": 8, "epochs": 1, "threads": 1} | more
    return TuneSettings(**{name: value for name, value in known.items() if value is not None})


def standing(run):
    """All that a run could be changed by."""
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
    "LoRA": {"form": "lora", "rank": 2, "per_neuron": None},
    "mezo": {"optimizer": "mezo", "lr": 1e-3},
    "rotate": {"rotate": 2},
    "depth": {"depth": 1},
    "bf16 base": {"dtype": "bf16"},
    "autocast": {"bf16": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_measuring_leaves_the_run_as_it_was(task, brief, form):
    run = Run(settings(task, eval=task / "eval.csv", **FORMS[form]), quiet)
    run.rows, run.eval_rows, run.whole  # noqa: B018
    before = standing(run)
    with closing(Ladder(run).groups()) as groups:
        found = [next(groups)]
        found += [next(groups)] if form == "sparse" else []
    assert standing(run) == before
    for cost in (cost for group in found for cost in group.costs):
        assert cost.memory.peak > cost.memory.process > 0
        assert cost.seconds > 0
        assert cost.steps == 12


@pytest.mark.parametrize("recompute", ["none", "inputs", "blocks"])
def test_bytes_of_a_step_are_those_of_a_large_one(task, brief, recompute):
    run = Run(settings(task, recompute=recompute, batch_size=32), quiet)
    with closing(Ladder(run).groups()) as groups:
        whole = next(groups).costs[0]
    ladder = Ladder(run)
    with undisturbed(run.base.model):
        session = Session(run, ladder._batch(1, 12))
        held = session.held(ladder._batch(32, max(ladder._lengths)), {})
        session.close()
    assert whole.memory.saved + whole.memory.temporary == pytest.approx(held.peak, rel=0.08)
    assert whole.memory.saved == pytest.approx(held.saved, rel=0.08)


def test_fewer_rows_and_recomputing_need_less(task, brief):
    run = Run(settings(task), quiet)
    with closing(Ladder(run).groups()) as groups:
        plain, inputs, blocks = (next(groups).costs for _ in range(3))
    runtimes = [cost.memory.runtime for cost in (*plain[1:], *inputs, *blocks)]
    assert max(runtimes) - min(runtimes) < 30e6  # whatever was loaded in between to measure the first of them
    step = [cost.memory.saved + cost.memory.temporary for cost in plain]
    assert [cost.changes.get("micro_batch") for cost in plain] == [None, 8, 4, 2, 1]
    assert step[1:] == sorted(step[1:], reverse=True)
    assert blocks[0].memory.saved < plain[0].memory.saved
    assert inputs[0].changes == {LOOPS[0].setting: LOOPS[0].value}


def test_entries_and_head_are_what_trains(task, brief):
    run = Run(settings(task), quiet)
    ladder = Ladder(run)
    with undisturbed(run.base.model):
        session = Session(run, ladder._batch(2, 5))
        trained = sum(parameter.numel() for parameter in session.trained)
        head = run.whole_parameters
        assert session.head == 3 * 4 * head  # its gradient and two moments: the values are the base's
        entries = session.state - session.head
        assert 16 * (trained - head) <= entries <= 120 * (trained - head)  # and places, columns, what the weight holds
        session.close()


def test_no_step_is_tried_that_the_budget_has_no_room_for(task, brief, monkeypatch):
    run = Run(settings(task), quiet)
    monkeypatch.setattr(room, "BEYOND", 0)
    ladder = Ladder(run, 1)
    monkeypatch.setattr(Session, "held", lambda *_: pytest.fail("a step was made"))
    with closing(ladder.groups()) as groups:
        assert list(groups) == []
    assert not ladder.room.has(1)
    assert Ladder(run, resident_bytes() + 2**30).room.has(2**20)


def test_where_loading_took_more_than_the_budget_small_steps_still_tell_what_would_fit(task, brief, monkeypatch):
    ladder = Ladder(Run(settings(task), quiet), 1)
    monkeypatch.setattr(ladder.room, "take_note", lambda: None)
    ladder.room.taken = 2 * resident_bytes()
    with closing(ladder.groups()) as groups:
        assert next(groups).costs
    assert ladder.room.has(ladder.room.taken // 50)
    assert not ladder.room.has(2 * ladder.room.taken)


def test_what_goes_beyond_a_budget_that_was_exceeded_anyway_does_not_count(monkeypatch):
    peaks = [0]
    monkeypatch.setattr(room, "lifetime_peak_bytes", lambda device: peaks[0])
    for budget, counted in ((None, 150), (130, 150), (110, 120)):
        peaks[0] = 100
        made = room.Room(budget)
        peaks[0] = 120
        made.take_note()
        peaks[0] = 150
        assert made.reached == counted


def test_the_selection_counts(task, brief):
    run = Run(settings(task, rule="fisher", batch_size=32), quiet)
    ladder = Ladder(run)
    line = ladder._selection(run)
    with LiveBytes() as live:
        run.choose([ladder._batch(32, max(ladder._lengths))])
    assert line.at(32) == pytest.approx(live.peak, rel=0.15)


def test_images_and_generation_are_predicted_too(task, tmp_path, brief):
    pictures = tiny_task.images(tmp_path / "pictures", 8)
    vit = tiny_task.vit(tmp_path / "vit")
    made = TuneSettings(model=str(vit), train=pictures, per_neuron=1, batch_size=4, threads=1)
    talk = tiny_task.table(tmp_path / "talk.csv", tiny_task.dialogs(16), ("prompt", "response"))
    llama = tiny_task.llama(tmp_path / "llama")
    more = TuneSettings(model=str(llama), train=talk, eval=talk, per_neuron=1, batch_size=4, threads=1)
    for each in (made, more):
        run = Run(each, quiet)
        with closing(Ladder(run).groups()) as groups:
            costs = next(groups).costs
        assert costs[0].memory.saved > costs[-1].memory.saved > 0
