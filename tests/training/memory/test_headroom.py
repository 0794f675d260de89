"""The headroom of a budget, with and without a budget that is exceeded already."""

from __future__ import annotations

import pytest

from taskedge.training.memory import headroom
from taskedge.training.memory.headroom import MemoryHeadroom, ReleaseFreedMemory


@pytest.fixture
def process(monkeypatch):
    """A process whose peak and resident set the test decides."""
    figures = {"peak": 100, "resident": 90}
    monkeypatch.setattr(headroom, "lifetime_peak_bytes", lambda _: figures["peak"])
    monkeypatch.setattr(headroom, "resident_bytes", lambda: figures["resident"])
    return figures


@pytest.mark.parametrize(("budget", "peak"), [(None, 150), (130, 150), (110, 120)])
def test_trial_steps_above_an_exceeded_budget_do_not_count(process, budget, peak):
    made = MemoryHeadroom(budget)
    process["peak"] = 120
    made.set_baseline()
    process["peak"] = 150
    assert made.peak_bytes == peak


def test_a_budget_is_the_limit_of_the_resident_set(process):
    made = MemoryHeadroom(130)
    assert made.fits(40)
    assert not made.fits(41)
    assert MemoryHeadroom(None).fits(10**18)


def test_an_exceeded_budget_leaves_a_little_above_the_baseline(process):
    process["peak"], process["resident"] = 1000, 1000
    made = MemoryHeadroom(500)
    assert made.fits(50)
    assert not made.fits(51)


def test_freed_memory_is_released_around_every_pass(monkeypatch):
    calls = []
    monkeypatch.setattr(headroom, "trim_heap", lambda *, collect=True: calls.append(collect))
    callback = ReleaseFreedMemory()
    callback.on_train_begin(None)
    callback.on_pass_end(None)
    callback.on_step_end(None)
    assert calls == [True, False, False]
