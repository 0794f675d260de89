"""One thread is taken when steps became slow and one is faster; no timing decides a test, the clock is given."""

from __future__ import annotations

import pytest
import tiny_task
import torch
from tiny_task import tune_config

from taskedge.training import inference, thread_watch
from taskedge.training.callbacks import TrainState
from taskedge.training.thread_watch import ThreadWatch
from taskedge.training.tune import tune


@pytest.fixture
def run(monkeypatch):
    """Runs a watch over steps of these seconds; returns what was said, the threads set, and how often it measured."""

    def call(seconds, pays, evaluation=0.0):
        threads, said, asked, now = [4], [], [], [0.0]
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
        monkeypatch.setattr(torch, "set_num_threads", threads.append)

        def that_pay(number):
            asked.append(number)
            return pays

        watch = ThreadWatch(said.append, that_pay, lambda: now[0])
        model = torch.nn.Linear(1, 1)
        state = TrainState(model, torch.optim.SGD(model.parameters()), len(seconds))
        for step, one in enumerate(seconds, start=1):
            watch.on_step_begin(state)
            now[0] += one + evaluation
            state.outside_seconds += evaluation
            state.step = step
            watch.on_step_end(state)
        return said, threads, asked

    return call


def test_slow_steps_on_a_machine_that_became_busy(run):
    said, threads, asked = run([0.4] * 10 + [19.0] * 5, 1)
    assert (threads, asked) == ([4, 1], [4])
    assert said == [
        "step 13: one thread instead of 4 from here on: steps became 3 times as slow, and 4 threads are slower than "
        "one now (--threads decides)"
    ]


def test_nothing_changes_where_several_threads_still_pay(run):
    said, threads, asked = run([0.4] * 10 + [2.0] * 60, 4)
    assert (said, threads) == ([], [4])
    assert len(asked) == 4  # steps 13, 21, 37 and 69: the pause doubles


@pytest.mark.parametrize("seconds", [[0.4] * 40, ([0.4] * 5 + [9.0]) * 8, [9.0] + [0.4] * 40])
def test_single_slow_steps_are_no_reason(run, seconds):
    assert run(seconds, 1)[2] == []


def test_evaluations_within_a_step_do_not_count(run):
    assert run([0.4] * 10 + [0.5] * 10, 1, evaluation=30.0)[2] == []


def test_one_thread_where_several_are_slower(monkeypatch):
    set_to, said = [], []
    monkeypatch.setattr(thread_watch.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(thread_watch.torch, "set_num_threads", set_to.append)
    for pay, given in ((4, None), (1, None), (1, 3)):
        monkeypatch.setattr(thread_watch, "threads_that_pay", lambda _, pay=pay: pay)
        thread_watch.set_threads(given, said.append)
    assert set_to == [1, 3]
    assert said == ["one thread instead of 4: the machine is busy, and 4 are slower now (--threads decides)"]


def test_many_rows_are_worth_the_measurement(task, tmp_path, monkeypatch):
    tune(tune_config(task, tmp_path / "o"), progress=False, log=str)
    asked = []
    monkeypatch.setattr(inference, "set_threads", lambda threads, _, advice: asked.append(advice))
    for rows, answers in ((20, True), (64, False), (64, True)):
        data = tiny_task.table(tmp_path / f"{rows}.csv", tiny_task.rows(rows))
        inference.prepare_inference(tmp_path / "o", data, answers=answers, log=str)
    assert asked == [""]
