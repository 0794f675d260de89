"""Rows of a linear in which one task of several has entries of its own, instead of those that all tasks share.

A gate for each row (neuron) says which entries a task has there: ``W_t = W + G_t∘Δ_t + (1 - G_t)∘Δ_0`` with the shared
change Δ_0 and the task's change Δ_t. Source: this project, after InterroGate (arXiv 2402.16848).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from taskedge.errors import DeltaError


class SharedEntries(Protocol):
    """The entries of a linear that all tasks share: a :class:`taskedge.delta.delta.LinearDelta`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        ...

    @property
    def rows(self) -> Tensor:
        """Row of each entry."""
        ...

    @property
    def columns(self) -> Tensor:
        """Column of each entry."""
        ...

    @property
    def values(self) -> Tensor:
        """Value of each entry."""
        ...

    @property
    def base_dtype(self) -> str:
        """Dtype of the base's weight."""
        ...


@dataclass(frozen=True)
class GatedRows:
    """The gates and own entries of one task in one linear.

    Attributes:
        shape: (out, in) of the weight.
        gates: bool [out]; true: the row has the task's own entries, which may be none; false: the shared ones.
        rows, columns: int64 [n], sorted by row and then column: the task's own entries.
        values: float32 [n], absolute.
        base_dtype: dtype of the base's weight, such as ``"float32"``.
        base_digest: digest of the base's values at the entries that the task has, its own and shared ones, in order.
    """

    shape: tuple[int, int]
    gates: Tensor
    rows: Tensor
    columns: Tensor
    values: Tensor
    base_dtype: str
    base_digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, name: str, shared: SharedEntries | None) -> None:
        """Raise DeltaError if the gates or the entries contradict themselves or the shared entries of the linear.

        The entries that the task has are checked when they are put together, as those of any delta.
        """
        if self.gates.shape != self.shape[:1] or self.gates.dtype != torch.bool:
            raise DeltaError(f"linear {name!r}: gates of shape {list(self.gates.shape)}, of {self.shape[0]} rows")
        if shared is not None and (shared.shape, shared.base_dtype) != (self.shape, self.base_dtype):
            raise DeltaError(
                f"linear {name!r}: a task has it as {list(self.shape)} in {self.base_dtype}, all tasks as "
                f"{list(shared.shape)} in {shared.base_dtype}"
            )
        in_range = len(self) == 0 or (int(self.rows.min()) >= 0 and int(self.rows.max()) < self.shape[0])
        if not in_range or not bool(self.gates[self.rows].all()):
            raise DeltaError(f"linear {name!r}: a task has an entry in a row that is not its own")

    def entries(self, shared: SharedEntries | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns and values of all entries that the task has, sorted by row and then column."""
        rows, columns, values = self.rows, self.columns, self.values
        if shared is not None:
            kept = ~self.gates[shared.rows]
            rows = torch.cat([rows, shared.rows[kept]])
            columns = torch.cat([columns, shared.columns[kept]])
            values = torch.cat([values, shared.values[kept]])
        order = (rows * self.shape[1] + columns).argsort()
        return rows[order], columns[order], values[order]


def needed_rows(out: int, gates: list[Tensor], num_tasks: int) -> Tensor:
    """Return bool [out]: the rows whose shared entries some task has.

    Args:
        out: rows of the linear.
        gates: those of the tasks that have gates here, each bool [out].
        num_tasks: tasks in all; one without gates has every shared row.
    """
    if len(gates) < num_tasks or not gates:
        return torch.ones(out, dtype=torch.bool)
    return ~torch.stack(gates).all(0)
