"""The product of some rows of a batch with a task's entries, added to the output of a linear.

With the extra ``fast`` a compiled loop walks the entries token by token; else torch gathers the needed columns. Both
compute in fp32 and agree up to the order of the sums.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskedge.serving.task_table import EntryTable

MAX_GATHERED = 2**24
"""Largest number of gathered inputs at once: 64 MB in fp32."""


def add_product(y: Tensor, x: Tensor, rows: npt.NDArray[np.int64], table: EntryTable) -> None:
    """Add the product with a task's entries to some rows of ``y``, in place.

    Args:
        y: [batch, tokens, out], contiguous: the output on the base's weights.
        x: [batch, tokens, in], the input.
        rows: rows of the batch that have the task.
        table: its entries.
    """
    if not table.differences.numel():
        return
    if table.shares_columns:
        _add_shared(y, x, rows, table)
    elif y.dtype == x.dtype == torch.float32 and y.device.type == "cpu" and is_compiled():
        _add_compiled(y, x, rows, table)
    else:
        add_gathered(y, x, rows, table)


def add_gathered(y: Tensor, x: Tensor, rows: npt.NDArray[np.int64], table: EntryTable) -> None:
    """Do the same with torch's operations; see :func:`add_product`."""
    columns, differences = table.columns.to(x.device).int(), table.differences.to(x.device)
    out = table.shape[0]
    index = None if table.row_ends is None else _row_index(table.row_ends).to(x.device)
    step = max(1, MAX_GATHERED // len(columns))
    for row in rows:
        for start in range(0, x.shape[1], step):
            part = x[row, start : start + step].float().index_select(1, columns) * differences  # [tokens, n]
            if index is None:
                added = part.view(len(part), out, table.per_row).sum(-1)
            else:
                added = part.new_zeros(len(part), out).index_add_(1, index, part)
            y[row, start : start + step] += added.to(y.dtype)


def _add_shared(y: Tensor, x: Tensor, rows: npt.NDArray[np.int64], table: EntryTable) -> None:
    chosen = torch.from_numpy(rows).to(x.device)
    columns, differences = table.columns.to(x.device).int(), table.differences.to(x.device)
    inputs = x.index_select(0, chosen).flatten(0, 1).index_select(1, columns)  # [tokens, C]
    added = (inputs.float() @ differences.t()).view(len(rows), -1, table.shape[0])
    y.index_add_(0, chosen, added.to(y.dtype))


def _row_index(row_ends: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(row_ends) - 1), row_ends.diff().long())


def _add_compiled(y: Tensor, x: Tensor, rows: npt.NDArray[np.int64], table: EntryTable) -> None:
    one_each, equally_many, by_ends = _loops()
    outputs, inputs = y.numpy(), x.contiguous().numpy()
    if table.row_ends is not None:
        by_ends(outputs, inputs, rows, *table.arrays)
    elif table.per_row == 1:
        one_each(outputs, inputs, rows, *table.arrays)
    else:
        equally_many(outputs, inputs, rows, *table.arrays, table.per_row)


@cache
def is_compiled() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


@cache
def _loops() -> tuple[Any, Any, Any]:
    """Return compiled loops for one entry per row, equally many, and any number."""
    import numba

    compiled = numba.njit(nogil=True, fastmath={"contract", "reassoc"}, boundscheck=False)

    def one_each(y: Any, x: Any, rows: Any, columns: Any, differences: Any) -> None:
        for row in rows:
            for token in range(x.shape[1]):
                for i in range(y.shape[2]):
                    y[row, token, i] += differences[i] * x[row, token, columns[i]]

    def equally_many(y: Any, x: Any, rows: Any, columns: Any, differences: Any, per_row: Any) -> None:
        for row in rows:
            for token in range(x.shape[1]):
                entry = 0
                for i in range(y.shape[2]):
                    total = np.float32(0)
                    for _ in range(per_row):
                        total += differences[entry] * x[row, token, columns[entry]]
                        entry += 1
                    y[row, token, i] += total

    def by_ends(y: Any, x: Any, rows: Any, columns: Any, differences: Any, ends: Any) -> None:
        for row in rows:
            for token in range(x.shape[1]):
                for i in range(y.shape[2]):
                    total = np.float32(0)
                    for entry in range(ends[i], ends[i + 1]):
                        total += differences[entry] * x[row, token, columns[entry]]
                    y[row, token, i] += total

    return compiled(one_each), compiled(equally_many), compiled(by_ends)
