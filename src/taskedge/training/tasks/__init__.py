"""Kinds of task: what ``tune``, ``eval`` and ``predict`` must know of one, and no more. One file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from taskedge.backbone.loading import Base
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.registry import Registry
from taskedge.training.data.table import Table
from taskedge.training.data.text_data import Row as Row

Batch = dict[str, Tensor]
Collate = Callable[[list[Row]], Batch]
Measures = dict[str, float | None]
"""How well a task is done: ``rows``, and figures by their names; None where one is not defined."""
Say = Callable[[str], None]
Done = Callable[[int], object]
"""Called with the number of rows that were worked on, for progress."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table a task reads; what it does not read is empty."""

    text: tuple[str, ...] = ()
    image: str | None = None
    prompt: str | None = None
    response: str | None = None
    label: str | None = None

    @property
    def named(self) -> dict[str, Any]:
        """Those that are named, as JSON has them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if name == "text" else value for name, value in found.items() if value}

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Columns:
        """The inverse of ``named``; other keys are left alone."""
        found = {field.name: named.get(field.name) for field in fields(cls)}
        return cls(**found | {"text": tuple(found["text"] or ())})


class Task(Protocol):
    """A kind of task, and what one delta must remember of its training data.

    ``learn`` (from training data) or ``recall`` (from a delta) makes one; ``meet`` makes it ready for a base.
    """

    name: ClassVar[str]
    """As in ``taskedge.backbone.loading.AUTO``, whose loader it uses."""
    reads: ClassVar[tuple[tuple[str, ...], ...]]
    """Sets of columns that hold its data, each with the input first; the first set that a file has is read."""
    max_length: ClassVar[int | None]
    """Tokens that texts are cut at unless a user says otherwise; None where the data is not text."""
    batch_size: ClassVar[int]
    """Rows in a training batch unless a user says otherwise."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; empty where there are none."""
        ...

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, say: Say) -> Table:
        """The data at ``path``, and with ``answers`` what is to be learnt or compared with."""
        ...

    @classmethod
    def learn(cls, table: Table, columns: Columns) -> Self:
        """What the training data says: classes, scale."""
        ...

    @classmethod
    def recall(cls, provenance: Provenance) -> Self:
        """What a delta remembers of that."""
        ...

    def about(self) -> dict[str, Any]:
        """What a delta must remember, beside the labels: goes into its provenance."""
        ...

    def meet(self, base: Base, table: Table | None = None, max_length: int = 0, new_tokens: int | None = None) -> Self:
        """The same with what follows from the base.

        Args:
            base: that the task is tuned on, or was.
            table: the training data, where this is a training run, and ``max_length`` as for ``encode``.
            new_tokens: most tokens of a generated answer, where a user wants another limit than that of the data.

        Raises InputError where the base is not the one that it was made for.
        """
        ...

    def check(self, table: Table) -> None:
        """Raises InputError where ``table`` has answers that this task does not know."""
        ...

    def identity(self, table: Table) -> Any:
        """JSON that differs where the data does."""
        ...

    def encode(self, base: Base, table: Table, max_length: int, say: Say) -> list[Row]:
        """The rows of a table as the model takes them."""
        ...

    def collate(self, base: Base) -> Collate:
        """Makes a batch of rows."""
        ...

    def evaluate(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> Measures:
        """How well the model does on rows with answers."""
        ...

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done
    ) -> list[dict[str, Any]]:
        """One answer for each row, by the names of its columns."""
        ...


TASKS: Registry[type[Task]] = Registry("task", __name__)


def task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Registers a kind of task under its name."""
    return TASKS.register(name)


def of_delta(provenance: Provenance) -> Task:
    """The task that a delta was trained for.

    Raises:
        InputError: it does not say, or it is a kind that is not known here.
    """
    if not provenance.task:
        raise InputError("the delta does not say which kind of task it is for: only what 'taskedge tune' made does")
    return TASKS[provenance.task].recall(provenance)
