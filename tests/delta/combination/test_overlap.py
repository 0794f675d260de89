"""Overlap of supports, against sets."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.delta.combination.overlap import overlaps
from taskedge.delta.combination.task_vectors import SparseVector, TaskVector

CHANGES = st.dictionaries(st.integers(0, 99), st.sampled_from([-1.0, 2.0]), max_size=60)


def vector(changes):
    flat = sorted(changes)
    part = SparseVector(
        (10, 10), torch.tensor(flat, dtype=torch.int64), torch.tensor([changes[i] for i in flat]).double()
    )
    return TaskVector({"w": part}, {}, {})


@given(CHANGES, CHANGES)
def test_shared_entries_and_signs(one, other):
    (found,) = overlaps(["a", "b"], [vector(one), vector(other)])
    shared = one.keys() & other.keys()
    assert found.shared == len(shared)
    assert found.same_sign == sum(one[i] * other[i] > 0 for i in shared)
    assert found.share == len(shared) / max(1, min(len(one), len(other)))


def test_every_pair_and_its_text():
    found = overlaps(["a", "b", "c"], [vector({1: 1.0, 2: 1.0}), vector({1: -1.0}), vector({})])
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert str(found[0]) == (
        "a and b: 1 shared entries, 100.00% of the smaller delta, 0.0% of them with the same sign "
        "(random supports: 2.00%)"
    )
