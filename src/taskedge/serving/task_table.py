"""The change of a base by a task, as a compact table: an index and a difference for each entry.

The forward pass of a batch runs on the base's weights. Where a row's task has an entry ``d`` at (i, j), ``d·x_j`` is
added to output i of that row (:mod:`.entry_product`). A table takes 2 or 4 bytes per index and 4 per difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from taskedge.backbone.layers import Linear
from taskedge.delta.delta import LinearDelta
from taskedge.errors import BaseMismatch


@dataclass(frozen=True)
class EntryTable:
    """The entries of one linear.

    Attributes:
        shape: (out, in) of the weight.
        columns: uint16 or int32 [n], row by row; [C] if every row has entries in the same columns.
        differences: float32 [n], the task's value minus the base's; [out, C] for shared columns.
        row_ends: int32 [out + 1], where the entries of each row begin and end; None if rows have equally many.
        per_row: entries of each row, if rows have equally many.
    """

    shape: tuple[int, int]
    columns: Tensor
    differences: Tensor
    row_ends: Tensor | None
    per_row: int

    @property
    def shares_columns(self) -> bool:
        """Whether every row has entries in the same columns."""
        return self.differences.dim() == 2

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(t.numel() * t.element_size() for t in self._tensors)

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
        """The same memory as arrays: columns, differences and, if there are any, row ends."""
        return tuple(tensor.numpy() for tensor in self._tensors)

    @property
    def _tensors(self) -> list[Tensor]:
        return [self.columns, self.differences, *([] if self.row_ends is None else [self.row_ends])]


@dataclass(frozen=True)
class TaskTable:
    """Everything that one task adds to the base.

    Attributes:
        entries: entries of linears, by the linear's name.
        modules: parameters that replace those of a module, by the module's name and then by their own: the head.
    """

    entries: Mapping[str, EntryTable]
    modules: Mapping[str, Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        own = sum(t.numel() * t.element_size() for module in self.modules.values() for t in module.values())
        return own + sum(table.nbytes for table in self.entries.values())

    def without_entries(self) -> TaskTable:
        """Return the table of the head alone, for a batch that runs on weights with the entries applied."""
        return TaskTable({}, self.modules)


def entry_table(layer: Linear, linear: LinearDelta) -> EntryTable:
    """Return the table of a linear's entries.

    Args:
        layer: of the base, with the base's values.
        linear: the trained entries; values are rounded to the dtype of the weight, as they are when they are applied.

    Raises:
        BaseMismatch: a value overflows in the dtype of the weight.
    """
    base = layer.read(linear.rows, linear.columns).cpu()
    differences = linear.values.to(base.dtype).float() - base.float()
    if not bool(differences.isfinite().all()):
        raise BaseMismatch(f"{layer.name!r} cannot hold the delta's values as {base.dtype}: serve the base in fp32")
    out, inputs = linear.shape
    dtype = torch.uint16 if inputs <= 2**16 else torch.int32
    counts = torch.bincount(linear.rows, minlength=out)
    per_row = int(counts[0]) if len(counts) else 0
    if not bool((counts == per_row).all()):
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
        return EntryTable(linear.shape, linear.columns.to(dtype), differences.contiguous(), ends, 0)
    columns = linear.columns.view(out, per_row)
    if out > 1 and per_row and bool((columns == columns[0]).all()):
        dense = differences.view(out, per_row).contiguous()
        return EntryTable(linear.shape, columns[0].to(dtype), dense, None, per_row)
    return EntryTable(linear.shape, linear.columns.to(dtype), differences.contiguous(), None, per_row)
