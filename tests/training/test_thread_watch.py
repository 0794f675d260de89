"""One thread is taken when steps became slow and one is faster; no timing decides a test, the clock is given."""

from __future__ import annotations

import pytest
import torch

from taskedge.training.callbacks import TrainState
from taskedge.training.thread_watch import ThreadWatch


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
