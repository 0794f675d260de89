"""A delta is validated when it is created."""

import pytest
import torch

from taskedge.delta.delta import Delta, LinearDelta
from taskedge.errors import DeltaError


def linear(rows=(0, 1), columns=(1, 0), values=(0.5, -0.5), shape=(2, 3)):
    return LinearDelta(
        shape,
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(columns, dtype=torch.int64),
        torch.tensor(values, dtype=torch.float32),
        "float32",
        "00",
    )


def test_counts():
    delta = Delta({"a": linear(), "b": linear((1,), (2,), (1.0,))}, {"head": torch.zeros(2, 4)})
    assert delta.num_entries == 3
    assert delta.num_full_parameters == 8
    assert len(delta.linears["b"]) == 1
    assert Delta({}).num_entries == 0


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ((0,), (0, 1), (1.0,), "1 rows, 2 columns and 1 values"),
        ((0, 2), (0, 0), (1.0, 1.0), r"a row index is outside 0\.\.1"),
        ((-1, 0), (0, 0), (1.0, 1.0), "a row index is outside"),
        ((0, 1), (0, 3), (1.0, 1.0), r"a column index is outside 0\.\.2"),
        ((0, 1), (-1, 0), (1.0, 1.0), "a column index is outside"),
        ((1, 0), (0, 0), (1.0, 1.0), "not sorted"),
        ((0, 0), (1, 1), (1.0, 1.0), "occurs twice"),
        ((0, 1), (0, 0), (1.0, torch.nan), "not a finite number"),
        ((0, 1), (0, 0), (-torch.inf, 1.0), "not a finite number"),
    ],
)
def test_entries_that_contradict_themselves(rows, columns, values, message):
    with pytest.raises(DeltaError, match=f"linear 'a': .*{message}"):
        Delta({"a": linear(rows, columns, values)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([0.0, torch.nan]), "not a finite number"),
        (torch.tensor([torch.inf]), "not a finite number"),
        (torch.tensor([1, 2]), r"torch\.int64, not floating point"),
        (torch.tensor([True]), r"torch\.bool"),
        (torch.tensor([1j]), r"torch\.complex64"),
        (torch.tensor([1.0]).to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
    ],
)
def test_full_parameters_are_finite_numbers_of_a_dtype_that_trains(tensor, message):
    with pytest.raises(DeltaError, match=f"parameter 'head.bias'.*{message}"):
        Delta({}, {"head.bias": tensor})


def test_provenance_is_replaced_in_a_new_delta():
    delta = Delta({"a": linear()})
    named = delta.with_provenance(task="text-classification", labels=("bad", "good"))
    assert named.provenance.labels == ("bad", "good")
    assert delta.provenance.labels == ()
    assert named.linears is delta.linears
