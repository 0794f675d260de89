"""Fixtures of the memory tests."""

from __future__ import annotations

import pytest

from taskedge.profiling.process_memory import resident_bytes


@pytest.fixture
def brief(monkeypatch):
    """Time one pass only, since no test depends on timings, and ignore the peak of earlier tests in this process."""
    monkeypatch.setattr("taskedge.training.memory.profiler.BRIEF_PASS_SECONDS", 0.0)
    monkeypatch.setattr("taskedge.training.memory.measure_step.LONG_PASS_SECONDS", 0.0)
    monkeypatch.setattr("taskedge.training.memory.headroom.lifetime_peak_bytes", lambda _: resident_bytes())
