"""Kinds of task: everything that ``tune``, ``eval`` and ``predict`` need from one. Each kind is one module."""

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
"""Quality of a result: ``rows``, and measures by name; None for a measure that is undefined."""
Log = Callable[[str], None]
"""Called with a status line."""
OnProgress = Callable[[int], object]
"""Called with the number of rows done since the last call."""


def ignore_log(line: str) -> None:
    """Drop a status line."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table by their kind; empty for kinds that a task does not read.

    Attributes:
        labels: columns of 0 and 1, one for each label, where a row may have several.
        label_separator: what separates the labels in a cell of ``label``, where a row may have several; no column.
    """

    text: tuple[str, ...] = ()
    image: str | None = None
    prompt: str | None = None
    response: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    label_separator: str | None = None
    source: str | None = None
    target: str | None = None
    tokens: str | None = None
    tags: str | None = None
    turns: str | None = None
    messages: str | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The columns that are set, as JSON-able values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Columns:
        """Return the inverse of ``named``; other keys are ignored. Several columns under ``label`` are ``labels``."""
        values = {field.name: named.get(field.name) for field in fields(cls)}
        if isinstance(values["label"], list | tuple):
            given = tuple(values["label"])
            values |= {"label": given[0] if len(given) == 1 else None, "labels": given if len(given) > 1 else ()}
        several = ("text", "labels")
        values = {  # a regression's provenance has the scale of its numbers as "target"
            name: value for name, value in values.items() if name in several or value is None or isinstance(value, str)
        }
        return cls(**values | {name: tuple(values[name] or ()) for name in several})


class Task(Protocol):
    """A kind of task, with what its deltas must remember of their training data.

    ``from_table`` (training data) or ``from_provenance`` (a delta) makes one; ``bind`` makes it ready for a base.

    Attributes:
        name: as in ``taskedge.backbone.loading.TASK_AUTO_CLASSES``, whose loader it uses.
        column_sets: sets of columns that hold its data, each with the input first. The first set that a file has is
            read.
        max_length: default number of tokens at which texts are cut; None if the data is not text.
        batch_size: default number of rows in a training batch.
    """

    name: ClassVar[str]
    column_sets: ClassVar[tuple[tuple[str, ...], ...]]
    max_length: ClassVar[int | None]
    batch_size: ClassVar[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; empty if there are none."""
        ...

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read the data at ``path``; with ``answers``, also what is to be learned or compared."""
        ...

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task from training data: its classes, or the scale of its numbers."""
        ...

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task from what a delta remembers of its training data."""
        ...

    def to_provenance(self) -> dict[str, Any]:
        """Return what a delta must remember beside the labels: entries of its provenance."""
        ...

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> Self:
        """Return the task with everything that depends on the base.

        Args:
            base: the base that the task is trained on, or was.
            table: the training data, for a training run.
            max_length: as for ``encode``, for a training run.
            new_tokens: largest number of tokens of a generated answer; by default that of the training data.
            log: called with lines about how the base and the task were matched.

        Raises:
            InputError: the base is not one that the task was made for.
        """
        ...

    def check(self, table: Table) -> None:
        """Check the answers of a table.

        Raises:
            InputError: an answer is not one that this task has.
        """
        ...

    def identity(self, table: Table) -> Any:
        """Return a JSON-able value that differs if the data differs."""
        ...

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return the rows of a table as the model takes them."""
        ...

    def collate(self, base: Base) -> Collate:
        """Return a function that makes a batch of rows."""
        ...

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the model on rows with answers."""
        ...

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return one answer for each row, by column name."""
        ...


TASKS: Registry[type[Task]] = Registry("task", __name__)


def task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Register a kind of task under its name."""
    return TASKS.register(name)


def task_of_delta(provenance: Provenance) -> Task:
    """Return the task that a delta was trained for.

    Raises:
        InputError: the provenance names no task, or an unknown kind.
    """
    if not provenance.task:
        raise InputError(
            "the delta does not say which kind of task it is for: 'taskedge tune' records it, and the library does for "
            "classifiers of transformers; a program can add it before it saves (Delta.with_provenance)"
        )
    return TASKS[provenance.task].from_provenance(provenance)
