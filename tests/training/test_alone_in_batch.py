"""A row's answer, loss and gradient do not depend on the rows beside it, for every kind of base and task."""

from __future__ import annotations

import pytest
import tiny_kinds

LARGEST = 1e-5


@pytest.mark.parametrize(("task", "kind"), tiny_kinds.CASES)
def test_alone_equals_in_a_batch(task, kind, tmp_path):
    base = tiny_kinds.base_of(kind, task, tmp_path / "base")
    bound, rows = tiny_kinds.rows_of(task, base, tmp_path)
    found = tiny_kinds.largest_differences(bound, base, rows)
    assert max(found.values()) <= LARGEST, found
