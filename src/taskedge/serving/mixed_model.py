"""A model whose rows have tasks of their own: the base's products, with each row's entries added beside them.

Hooks on the touched layers add what the rows of the running batch need. Without a batch they do nothing, so the model
stays the base for everybody else. One thread may run the model at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from taskedge.backbone.layers import first_input
from taskedge.errors import InputError
from taskedge.serving.entry_product import add_product
from taskedge.serving.task_table import TaskTable

Rows = npt.NDArray[np.int64]


class NotRowByRow(InputError):
    """A layer whose input does not hold the rows of the batch one after the other."""


class MixedModel:
    """A model, and what the rows of the running batch add to it.

    Args:
        model: the base; its layers get hooks as tasks touch them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._hooked: set[str] = set()
        self._num_rows = 0
        self._groups: list[tuple[TaskTable, Rows]] = []
        self._inside = False

    @contextmanager
    def rows(self, tables: Sequence[TaskTable | None]) -> Iterator[None]:
        """Give each row of the batches inside the block a task; None is the base.

        Args:
            tables: one for each row; rows with the same object are computed together.
        """
        self.regroup(tables)
        try:
            yield
        finally:
            self._num_rows, self._groups = 0, []

    def regroup(self, tables: Sequence[TaskTable | None]) -> None:
        """Inside a block of :meth:`rows`: give the rows of all further layers other tasks, or change their number."""
        groups: dict[int, tuple[TaskTable, list[int]]] = {}
        for row, table in enumerate(tables):
            if table is not None:
                groups.setdefault(id(table), (table, []))[1].append(row)
        self._groups = [(table, np.array(rows)) for table, rows in groups.values()]
        for table, _ in self._groups:
            self._hook(table)
        self._num_rows = len(tables)

    def _hook(self, table: TaskTable) -> None:
        for name in (*table.entries, *table.modules):
            if name not in self._hooked:
                self._hooked.add(name)
                layer = self.model.get_submodule(name)
                layer.register_forward_hook(self._hook_of(name), with_kwargs=True)

    def _hook_of(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not self._groups or self._inside:
                return None
            own = [(table.modules[name], rows) for table, rows in self._groups if name in table.modules]
            entries = [(table.entries[name], rows) for table, rows in self._groups if name in table.entries]
            if not own and not entries:
                return None
            x = first_input(args, kwargs)
            self._check_rows(name, x, output)
            if own:
                output = self._with_own_parameters(module, x, output, own)
            if entries:
                output = output.contiguous()
                by_row = output.view(self._num_rows, -1, output.shape[-1])
                inputs = x.reshape(self._num_rows, -1, x.shape[-1])
                for table, rows in entries:
                    add_product(by_row, inputs, rows, table)
            return output

        return hook

    def _check_rows(self, name: str, x: Any, output: Any) -> None:
        """Raise NotRowByRow unless input and output hold equally many vectors of every row, row after row."""
        fits = isinstance(x, Tensor) and isinstance(output, Tensor) and x.dim() > 1
        fits = fits and x.shape[:-1] == output.shape[:-1] and x.shape[0] % self._num_rows == 0
        if not fits:
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise NotRowByRow(f"layer {name!r} reads {shape}, which does not hold {self._num_rows} rows one by one")

    def _with_own_parameters(
        self, module: nn.Module, x: Tensor, output: Tensor, own: Sequence[tuple[Mapping[str, Tensor], Rows]]
    ) -> Tensor:
        """Return the output with the rows of some tasks computed on their own parameters, padded to the widest."""
        by_row = x.view(self._num_rows, -1, *x.shape[1:])
        parts = []
        self._inside = True
        try:
            for parameters, rows in own:
                chosen = by_row[torch.from_numpy(rows)].flatten(0, 1)
                parts.append(functional_call(module, dict(parameters), (chosen,)))
        finally:
            self._inside = False
        width = max(output.shape[-1], *(part.shape[-1] for part in parts))
        padded = F.pad(output, (0, width - output.shape[-1]))
        result = padded.clone() if padded is output else padded
        rows_of = result.view(self._num_rows, -1, *result.shape[1:])
        for part, (_, rows) in zip(parts, own, strict=True):
            rows_of[torch.from_numpy(rows)] = F.pad(part, (0, width - part.shape[-1])).view(
                len(rows), -1, *result.shape[1:]
            )
        return result
