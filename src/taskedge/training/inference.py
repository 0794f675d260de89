"""Inference with a delta: evaluation and prediction on data, for any kind of task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.backbone.loading import Base
from taskedge.backbone.storage.memory_map import check_unchanged
from taskedge.delta.load_with_delta import load_head, load_with_delta
from taskedge.errors import InputError
from taskedge.training.classification import examines_rows
from taskedge.training.data.infer_task import SETS, default_columns, flags_text, split_label_columns
from taskedge.training.data.label_checks import understood_lines
from taskedge.training.data.text_data import Prediction
from taskedge.training.guard import RowError, in_file
from taskedge.training.held_out_rows import PartRows
from taskedge.training.soft_prompts import prompt_rows
from taskedge.training.tasks import Columns, Log, Measures, OnProgress, Row, Task, task_of_delta
from taskedge.training.thread_watch import set_threads
from taskedge.training.trainer_config import DEFAULTS

ROWS_THAT_REPAY = 64
"""Rows with answers from which the 0.2 s are spent to measure whether one thread is faster."""
BATCHES_IN_BLOCK = 16
"""Batches of a prediction that are answered, and written, together."""


@dataclass(frozen=True)
class Inference:
    """A base with a delta applied, and rows.

    Attributes:
        task: the task of the delta, bound to the base.
        base: the base with the delta applied.
        rows: the encoded rows.
        path: the file or folder of the rows, for messages.
        identity: a JSON-able value that differs if the data differs.
        texts: the unchanged input of each row.
    """

    task: Task
    base: Base
    rows: list[Row]
    path: Path
    identity: Any = None
    texts: Sequence[str] = ()

    def evaluate(self, batch_size: int = DEFAULTS.batch_size, on_progress: OnProgress = lambda _: None) -> Measures:
        """Measure the answers to the rows, which must have been read with answers."""
        with in_file(self.path):
            measures = self.task.evaluate(self.base.model, self.base, self.rows, batch_size, on_progress)
        check_unchanged(self.base.model)
        return measures

    def examine(
        self, batch_size: int = DEFAULTS.batch_size, on_progress: OnProgress = lambda _: None
    ) -> tuple[Measures, Prediction | None]:
        """Measure the answers to the rows, and return the prediction as well, of a task with classes for whole rows."""
        if not examines_rows(self.task):
            return self.evaluate(batch_size, on_progress), None
        with in_file(self.path):
            examined = self.task.examine(self.base.model, self.base, self.rows, batch_size, on_progress)
        check_unchanged(self.base.model)
        return examined

    def figures(self, prediction: Prediction) -> dict[str, Any]:
        """Return the figures of every class or label, of a prediction of :meth:`examine`."""
        assert examines_rows(self.task)
        return self.task.figures(self.rows, prediction)

    def mistakes(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Return the worst mistakes of a prediction of :meth:`examine`, with their texts."""
        assert examines_rows(self.task)
        return self.task.mistakes(self.rows, prediction, self.texts)

    def never_predicted(self, prediction: Prediction) -> str:
        """Return a line about classes that occur but are never predicted; ``""`` if there are none."""
        assert examines_rows(self.task)
        return self.task.never_predicted(self.rows, prediction)

    def predict(
        self, batch_size: int = DEFAULTS.batch_size, on_progress: OnProgress = lambda _: None
    ) -> list[dict[str, Any]]:
        """Return the answer to each row, in their order, with its number (from 1) under ``row``."""
        return list(itertools.chain.from_iterable(self.iter_answers(batch_size, on_progress)))

    def iter_answers(
        self, batch_size: int = DEFAULTS.batch_size, on_progress: OnProgress = lambda _: None, *, start: int = 0
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the answers of :meth:`predict` in blocks of ``BATCHES_IN_BLOCK`` batches, from the row ``start``.

        Only rows of one block share a batch. If ``start`` is where a block of an earlier call ended, the blocks are
        those of that call.
        """
        for first in range(start, len(self.rows), BATCHES_IN_BLOCK * batch_size):
            rows = self.rows[first : first + BATCHES_IN_BLOCK * batch_size]
            numbers = getattr(self.rows, "numbers", None)  # of rows that are not one for each row of the file
            if numbers is not None:
                rows = PartRows(rows, numbers[first : first + len(rows)])
            with in_file(self.path):
                try:
                    answers = self.task.predict(self.base.model, self.base, rows, batch_size, on_progress)
                except RowError as error:
                    told = error.numbers if numbers else [first + number for number in error.numbers]
                    raise RowError(told, error.reason) from error.__cause__
            check_unchanged(self.base.model)
            yield [{"row": row} | answer for row, answer in enumerate(answers, start=first + 1)]


def prepare_inference(
    delta: Path,
    data: Path,
    columns: Columns = Columns(),  # noqa: B008  # it is frozen
    *,
    answers: bool,
    model: str | None = None,
    head: str | None = None,
    weight_storage: str | None = None,
    force: bool = False,
    max_new_tokens: int | None = None,
    log: Log = print,
) -> Inference:
    """Read data and apply a delta to a freshly loaded base.

    Args:
        delta: a file made by ``tune``.
        data: data of the same kind as the training data.
        columns: columns that have other names than in the training data.
        answers: whether to read the answers, to compare with.
        model: the base; by default the one that the delta names.
        head: name of the head, of a delta for several tasks.
        weight_storage: one of :data:`taskedge.backbone.storage.WEIGHT_STORAGE`; by default as in training.
        force: apply the delta even to a base with other values.
        max_new_tokens: largest number of tokens of a generated answer; by default as in training.
        log: called with status lines.

    Raises:
        InputError, DeltaError: the data, the delta or the base cannot be used, or do not belong together.
    """
    provenance = load_head(delta, head).provenance
    try:
        task = task_of_delta(provenance)
    except InputError as error:
        raise InputError(f"{delta}: {error}") from None
    if data.is_dir() and task.max_length is not None:
        raise InputError(f"{data} is a folder, but the delta is for {task.name}: name a file")
    trained = Columns.of(provenance.training)
    columns = Columns() if data.is_dir() else _columns(delta, data, task, columns, trained)
    table = task.read(data, columns, answers=answers, log=log)
    for line in understood_lines(table, len(task.labels) if answers else 0):
        log(line)
    if answers:
        task.check(table)
    if answers and len(table) >= ROWS_THAT_REPAY:  # not for a prediction, which resumes to the same bytes
        set_threads(None, log, advice="")
    base, _ = load_with_delta(delta, model, head=head, weight_storage=weight_storage, force=force, log=log)
    task = task.bind(base, new_tokens=max_new_tokens, log=log)
    trained_length = int(provenance.training.get("max_length", task.max_length or 0))
    if task.max_length is not None and "max_length" not in provenance.training:
        log(f"{delta} does not state at how many tokens texts were cut in training: {trained_length} is assumed")
    max_length = min(trained_length, base.max_positions or trained_length)
    rows = prompt_rows(base, task.encode(base, table, max_length, log))
    return Inference(task, base, rows, data, task.identity(table), table.texts)


def _columns(delta: Path, data: Path, task: Task, given: Columns, trained: Columns) -> Columns:
    """Return the given columns, else those of the training, else (it was trained on folders) the default names.

    Raises:
        InputError: a given column is one that the task does not read, or columns of labels are not those of the task.
    """
    given = split_label_columns(data, given) if task.name == SETS else given
    if given.labels and sorted(given.labels) != sorted(task.labels):
        raise InputError(
            f"{delta}: the columns {', '.join(map(repr, given.labels))} are not the labels of the delta "
            f"({', '.join(map(repr, task.labels))}): name these, or one column that lists the labels of a row"
        )
    named, before = given.named, trained.named
    separator = before.pop("label_separator", None)
    separator = named.pop("label_separator", separator)
    if {"label", "labels"} & named.keys():
        before = {name: value for name, value in before.items() if name not in ("label", "labels")}
    column_sets = [names for names in task.column_sets if set(before) <= set(names)] or list(task.column_sets)
    for name in named:
        if not any(name in names for names in column_sets):
            expected = flags_text(column_sets[0])
            raise InputError(f"{delta}: the delta is for {task.name}, which reads {expected}, not --{name}")
    names = next((names for names in column_sets if set(named) <= set(names)), column_sets[0])
    found = before | named
    if not {"label", "labels"} & found.keys():
        found = default_columns(names) | found
    else:
        found = default_columns(name for name in names if name not in ("label", "labels")) | found
    return Columns.of(found | ({"label_separator": separator} if separator else {}))
