"""One forward pass that answers all tasks of a delta with gates: a shared trunk, and a stream for each task beyond it.

Before the first block in which a task has rows of its own, its activations are those of all tasks that share the
trunk, so they are computed once. Before that block, the rows of the batch are copied for the task; from there on its
copy is computed with its own entries (:mod:`.mixed_model`). Which tasks have left where follows from the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.delta.delta import Delta
from taskedge.errors import InputError
from taskedge.serving.served_task import ServedTask
from taskedge.training.data.text_data import evaluating
from taskedge.training.many.trunk_cost import TrunkCost


class OnePass:
    """Answers all tasks of one delta in one pass.

    Args:
        delta: of several tasks, loaded from its file.
        tasks: the same tasks as they are served, by the name of the head.

    Attributes:
        cost: of a pass, in passes of one task.

    Raises:
        InputError: a task cannot share a batch, or the tasks need models of different classes.
    """

    def __init__(self, delta: Delta, tasks: Mapping[str, ServedTask]) -> None:
        views = {id(task.view) for task in tasks.values()}
        if len(views) != 1 or tasks.keys() != delta.heads.keys():
            raise InputError("one pass answers the tasks of one delta, on one class of model")
        for name, task in tasks.items():
            if task.alone:
                raise InputError(f"task {name!r} shares no batch with others: {task.alone}")
        self._tasks = dict(tasks)
        self._view = next(iter(tasks.values())).view
        trunk = TrunkCost.of_model(self._view.base.model)
        leaves = trunk.departures_of_names([delta.heads[name].gated for name in tasks])
        self._leaves = dict(zip(tasks, leaves, strict=True))
        self._blocks = [self._view.base.model.get_submodule(name) for name in trunk.names]
        self.cost = trunk.of_departures(leaves)
        self._streams: list[str] = []
        self._num_rows = 0

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of every task for a batch, float32 [rows, outputs], by task."""
        model: Any = self._view.base.model
        self._num_rows = len(next(iter(batch.values())))
        self._streams = self._streams_of(0)
        with evaluating(model), self._view.mixed.rows(self._tables()), self._hooks():
            outputs = model(**batch).logits.float()
        parts = outputs.split(self._num_rows)
        return {
            name: part[..., : self._tasks[name].num_outputs] for name, part in zip(self._streams, parts, strict=True)
        }

    def _streams_of(self, block: int) -> list[str]:
        """Return the streams of a block: tasks that have left the trunk, then the one that stands for all others."""
        left = [name for name in self._tasks if self._leaves[name] <= block]
        trunk = [name for name in self._tasks if self._leaves[name] > block]
        return left + ([max(trunk, key=lambda name: self._leaves[name])] if trunk else [])

    def _tables(self) -> list[Any]:
        return [self._tasks[name].table for name in self._streams for _ in range(self._num_rows)]

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [
            block.register_forward_pre_hook(self._before(index), with_kwargs=True)
            for index, block in enumerate(self._blocks)
        ]
        handles.append(self._blocks[-1].register_forward_hook(self._after_last))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            former, self._streams = self._streams, self._streams_of(index)
            source = self._sources(former)
            if self._streams != former:
                self._view.mixed.regroup(self._tables())

            def copied(value: Any) -> Any:
                if not isinstance(value, Tensor) or value.dim() < 2:  # positions have one dimension
                    return value
                if len(former) > 1 and len(value) == len(former) * self._num_rows:
                    return _chosen(value, source, self._num_rows)
                if len(value) == self._num_rows:  # of the whole batch: the same for every stream
                    return _chosen(value, [0] * len(self._streams), self._num_rows)
                return value

            return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}

        return hook

    def _after_last(self, _: nn.Module, _args: Any, output: Any) -> Any:
        """Give every task a stream, for its head."""
        former, self._streams = self._streams, list(self._tasks)
        source = self._sources(former)
        self._view.mixed.regroup(self._tables())
        if isinstance(output, Tensor):
            return _chosen(output, source, self._num_rows)
        return tuple(_chosen(each, source, self._num_rows) if isinstance(each, Tensor) else each for each in output)

    def _sources(self, former: Sequence[str]) -> list[int]:
        """Return for each present stream the place of the former stream that it comes from: its own, or the trunk."""
        return [former.index(name) if name in former else len(former) - 1 for name in self._streams]


def _chosen(value: Tensor, streams: Sequence[int], num_rows: int) -> Tensor:
    """Return the rows of these streams, one stream after the other."""
    parts = torch.split(value, num_rows)
    return torch.cat([parts[stream] for stream in streams])
