from __future__ import annotations

import pytest
import tiny_task

from taskedge.training.memory.decide import BudgetDecision


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Tiny models and data (tiny_task.folder_of_a_task); tests only read here."""
    return tiny_task.folder_of_a_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def without_memory(monkeypatch):
    """Leave out the measurement of memory options, which takes long and is tested with the memory profiler."""
    monkeypatch.setattr("taskedge.training.dry_run.profile_all_options", _no_decision)


def _no_decision(run, log):
    run.load()
    return BudgetDecision(None, None, [], [])
