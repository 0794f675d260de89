"""Tables hold the differences to the base, in little more memory than the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from taskedge.backbone.layers import as_linear
from taskedge.delta.delta import LinearDelta
from taskedge.errors import BaseMismatch
from taskedge.serving.task_table import TaskTable, entry_table


def case(flat, shape=(6, 9), dtype=torch.float32):
    torch.manual_seed(0)
    module = nn.Linear(shape[1], shape[0]).to(dtype)
    flat = torch.tensor(flat, dtype=torch.int64)
    linear = LinearDelta(shape, flat // shape[1], flat % shape[1], torch.randn(len(flat)), "float32", "")
    return as_linear("w", module), linear


def dense(table):
    """The table as a matrix."""
    full = torch.zeros(table.shape)
    if table.shares_columns:
        full[:, table.columns.int()] = table.differences
        return full
    ends = table.row_ends if table.row_ends is not None else torch.arange(table.shape[0] + 1) * table.per_row
    rows = torch.repeat_interleave(torch.arange(table.shape[0]), ends.diff().long())
    full[rows, table.columns.int()] = table.differences
    return full


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("flat", "form"),
    [
        ([0, 10, 19, 30, 40, 50], "one each"),
        ([0, 3, 10, 11, 19, 20, 30, 31, 40, 41, 50, 53], "two each"),
        ([0, 1, 2, 50], "any number"),
        ([r * 9 + c for r in range(6) for c in (2, 5)], "shared columns"),
        ([], "none"),
    ],
)
def test_differences(flat, form, dtype):
    layer, linear = case(flat, dtype=dtype)
    table = entry_table(layer, linear)
    assert table.shares_columns == (form == "shared columns")
    assert (table.row_ends is not None) == (form == "any number")
    expected = torch.zeros(6, 9)
    base = layer.weight.float()[linear.rows, linear.columns]
    expected[linear.rows, linear.columns] = linear.values.to(dtype).float() - base  # as apply() rounds them
    assert torch.equal(dense(table), expected)


def test_memory_is_that_of_index_and_difference():
    layer, linear = case([0, 10, 19, 30, 40, 50])
    table = TaskTable({"w": entry_table(layer, linear)}, {"head": {"bias": torch.zeros(3)}})
    assert table.nbytes == 6 * (2 + 4) + 12
    assert table.without_entries().nbytes == 12


def test_a_value_that_overflows_is_refused():
    layer, linear = case([0, 1], dtype=torch.float16)
    with pytest.raises(BaseMismatch, match="cannot hold the delta's values"):
        entry_table(layer, replace(linear, values=torch.tensor([1.0, 1e6])))
