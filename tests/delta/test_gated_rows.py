"""Tasks of one delta that share entries in some rows and have their own in others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taskedge.delta.delta import Delta, Head, LinearDelta, Provenance
from taskedge.delta.gated_rows import GatedRows, needed_rows
from taskedge.errors import DeltaError

SHAPE = (4, 5)


def shared() -> LinearDelta:
    rows, columns = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 0, 2, 1])
    return LinearDelta(SHAPE, rows, columns, torch.tensor([1.0, 2.0, 3.0, 4.0]), "float32", "s" * 24)


def own(digest: str = "e" * 24) -> GatedRows:
    gates = torch.tensor([False, True, True, False])  # row 2 has no entry of its own: the base's values
    return GatedRows(
        SHAPE, gates, torch.tensor([1, 1]), torch.tensor([0, 3]), torch.tensor([7.0, 8.0]), "float32", digest
    )


def both() -> Delta:
    head = Head({}, Provenance(task="text-classification", labels=("x",)))
    return Delta({"l": shared()}, heads={"a": replace(head, gated={"l": own()}), "b": head})


def test_a_task_has_its_own_rows_and_the_shared_ones_elsewhere() -> None:
    part = both().with_head("a").linears["l"]
    assert part.rows.tolist() == [0, 1, 1, 3]
    assert part.columns.tolist() == [4, 0, 3, 1]
    assert part.values.tolist() == [1.0, 7.0, 8.0, 4.0]
    assert part.base_digest == "e" * 24
    assert torch.equal(both().with_head("b").linears["l"].values, shared().values)


def test_a_dense_oracle_of_the_formula() -> None:
    base = torch.randn(SHAPE)
    delta = both()
    part, gates = delta.heads["a"].gated["l"], delta.heads["a"].gated["l"].gates
    of_shared, of_own = base.clone(), base.clone()
    of_shared[shared().rows, shared().columns] = shared().values
    of_own[part.rows, part.columns] = part.values
    expected = torch.where(gates[:, None], of_own, of_shared)
    found, effective = base.clone(), delta.with_head("a").linears["l"]
    found[effective.rows, effective.columns] = effective.values
    assert torch.equal(found, expected)


def test_a_linear_without_any_entry_of_the_task_is_left_out() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    closed = GatedRows(SHAPE, torch.ones(4, dtype=torch.bool), nothing, nothing, torch.empty(0), "float32", "")
    delta = both()
    head = replace(delta.heads["a"], gated={"l": closed})
    assert replace(delta, heads={"a": head}).with_head("a").linears == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: replace(part, gates=torch.ones(3, dtype=torch.bool)), "gates of shape"),
        (lambda part: replace(part, rows=torch.tensor([0, 1])), "in a row that is not its own"),
        (lambda part: replace(part, rows=torch.tensor([1, 9])), "in a row that is not its own"),
        (lambda part: replace(part, base_dtype="bfloat16"), "in bfloat16"),
        (lambda part: replace(part, columns=torch.tensor([3, 3])), "not sorted, or one occurs twice"),
        (lambda part: replace(part, columns=torch.tensor([0, 5])), "column index is outside"),
        (lambda part: replace(part, values=torch.tensor([1.0, float("nan")])), "not a finite number"),
    ],
)
def test_contradictions_are_refused(change, message) -> None:
    delta = both()
    with pytest.raises(DeltaError, match=message):
        replace(delta, heads={"a": replace(delta.heads["a"], gated={"l": change(own())})})


def test_a_weight_is_not_changed_in_two_ways() -> None:
    delta = both()
    with pytest.raises(DeltaError, match="changed in two ways"):
        replace(delta, linears={}, full_parameters={"l.weight": torch.zeros(SHAPE)})


def test_a_shared_row_that_every_task_replaces_is_not_needed() -> None:
    first, second = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert needed_rows(3, [first, second], 2).tolist() == [False, True, True]
    assert needed_rows(3, [first, second], 3).all(), "a third task without gates has every shared row"
    assert needed_rows(3, [], 0).all()
