"""``evaluate`` and ``predict``: a delta on its base at work on data, whatever kind of task it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.backbone.loading import Base
from taskedge.backbone.storage.memory_map import check_unchanged
from taskedge.delta.file import load
from taskedge.delta.load_with_delta import load_applied
from taskedge.errors import InputError
from taskedge.training.data.infer_task import customary, flags
from taskedge.training.tasks import Columns, Done, Measures, Row, Say, Task, of_delta
from taskedge.training.trainer_config import FitSettings


@dataclass(frozen=True)
class Work:
    """A task, the base with the delta on it, and the rows to work on."""

    task: Task
    base: Base
    rows: list[Row]

    def evaluate(self, batch_size: int = FitSettings.batch_size, done: Done = lambda _: None) -> Measures:
        """How well the task is done; the rows must have been read with answers."""
        measured = self.task.evaluate(self.base.model, self.base, self.rows, batch_size, done)
        check_unchanged(self.base.model)
        return measured

    def predict(self, batch_size: int = FitSettings.batch_size, done: Done = lambda _: None) -> list[dict[str, Any]]:
        """The answer to each row, in their order, after its number (from 1)."""
        found = self.task.predict(self.base.model, self.base, self.rows, batch_size, done)
        check_unchanged(self.base.model)
        return [{"row": row} | answer for row, answer in enumerate(found, start=1)]


def prepare(
    delta: Path,
    data: Path,
    asked: Columns = Columns(),  # noqa: B008  # it is frozen
    *,
    answers: bool,
    model: str | None = None,
    base: str | None = None,
    force: bool = False,
    max_new_tokens: int | None = None,
    say: Say = print,
) -> Work:
    """Reads data and puts the delta onto a freshly loaded base.

    Args:
        delta: a file made by ``tune``.
        data: of the kind that it was trained on.
        asked: columns that the data has under other names than the training data.
        answers: whether to read what the task finds, too, to compare with.
        model: the base, if not the one that the delta names.
        base: how to hold it (:data:`taskedge.backbone.HOLDS`), if not as in training.
        force: apply the delta to a base with other values, too.
        max_new_tokens: for what generates: most tokens of an answer, if not that of the training.

    Raises:
        InputError, DeltaError: the data, the delta or the base cannot be used, or do not belong together.
    """
    made = load(delta).provenance
    try:
        task = of_delta(made)
    except InputError as error:
        raise InputError(f"{delta}: {error}") from None
    if data.is_dir() and task.max_length is not None:
        raise InputError(f"{data} is a folder, but the delta is for {task.name}: name a file")
    columns = Columns() if data.is_dir() else _columns(delta, task, asked, Columns.of(made.training))
    table = task.read(data, columns, answers=answers, say=say)
    if answers:
        task.check(table)
    loaded, _ = load_applied(delta, model, held=base, force=force, say=say)
    task = task.meet(loaded, new_tokens=max_new_tokens)
    longest = int(made.training.get("max_length", task.max_length or 0))
    return Work(task, loaded, task.encode(loaded, table, min(longest, loaded.longest or longest), say))


def _columns(delta: Path, task: Task, asked: Columns, trained: Columns) -> Columns:
    """Those that are asked for, else those of the training, else (it was trained on folders) the customary names.

    Raises:
        InputError: one is asked for that the task does not read.
    """
    named, before = asked.named, trained.named
    sets = [wanted for wanted in task.reads if set(before) <= set(wanted)] or list(task.reads)
    for name in named:
        if not any(name in wanted for wanted in sets):
            raise InputError(f"{delta}: the delta is for {task.name}, which reads {flags(sets[0])}, not --{name}")
    wanted = next((wanted for wanted in sets if set(named) <= set(wanted)), sets[0])
    return Columns.of(customary(wanted) | before | named)
