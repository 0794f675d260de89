from __future__ import annotations

import pytest
import tiny_task


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Tiny models and data (tiny_task.folder_of_a_task); tests only read here."""
    return tiny_task.folder_of_a_task(tmp_path_factory.mktemp("task"))
