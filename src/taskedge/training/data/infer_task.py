"""Inference of the task and the columns of data, from what the user names and what the file has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.table import Table, as_number
from taskedge.training.data.table_readers import column_names
from taskedge.training.tasks import TASKS, Columns

CLASSES, NUMBERS, IMAGES = "text-classification", "text-regression", "image-classification"


@dataclass(frozen=True)
class InferredTask:
    """Task and columns, before the rows are read.

    Attributes:
        task: name of the task.
        columns: the columns to read.
        depends_on_labels: whether the labels decide between classes and numbers (:func:`task_of_labels`).
    """

    task: str
    columns: Columns
    depends_on_labels: bool = False


def infer_task(path: Path, given: Columns, task: str | None = None) -> InferredTask:
    """Return the task that the data at ``path`` is for, and its columns.

    A folder holds images of classes. In a table, a column that the user does not name has its default name (``text``,
    ``label``, ``prompt``, ``response``, ``image``, ...). The first complete set of columns decides: image and label,
    prompt and response, text and label, source and target, tokens and tags, text alone.

    Args:
        path: a folder or a table.
        given: columns that the user names.
        task: the task, if the user names it.

    Raises:
        InputError: columns that no task reads together, or too few of them; a file that cannot be read.
        UnknownName: no such task.
    """
    named = given.named
    if path.is_dir():
        if task not in (None, IMAGES):
            raise InputError(f"{path} is a folder, which is read as images; for {task} name a file")
        if named:
            raise InputError(f"{path} is a folder, which has no columns: leave out {flags_text(named)}")
        return InferredTask(IMAGES, Columns())
    candidates = [(name, columns) for name in ([task] if task else TASKS) for columns in TASKS[name].column_sets]
    # classes before the kinds that came later; stable: equal sets stay by task name
    candidates.sort(key=lambda found: (-len(found[1]), found[1][0] in ("source", "tokens"), found[1]))
    fitting = [(name, columns) for name, columns in candidates if set(named) <= set(columns)]
    if not fitting:
        raise InputError(
            f"{task or 'no kind of task'} reads {flags_text(named)} together: name "
            + ", or ".join(dict.fromkeys(flags_text(columns) for _, columns in candidates))
        )
    available = [] if set(named) == set(fitting[0][1]) else column_names(path)
    free = set(available) - {*given.text, *(value for name, value in named.items() if name != "text")}
    for name, columns in fitting:
        if all(column in named or column in free for column in columns):
            return InferredTask(
                name, Columns.of(default_columns(columns) | named), depends_on_labels=task is None and name == CLASSES
            )
    raise InputError(
        f"{path}: say what to learn from: "
        + ", or ".join(dict.fromkeys(flags_text(columns) for _, columns in fitting))
        + f" (columns: {', '.join(map(repr, available)) or 'none'})"
    )


def default_columns(names: Iterable[str]) -> dict[str, Any]:
    """Return the default names of columns by their kind, for ``Columns.of``."""
    return {name: [name] if name == "text" else name for name in names}


def task_of_labels(table: Table) -> str:
    """Return the task of labels: numbers if all are numbers and some have a fraction, otherwise classes."""
    numbers = [as_number(label) for label in table.labels or ()]
    has_fractions = any(number is not None and number != int(number) for number in numbers)
    return NUMBERS if has_fractions and None not in numbers else CLASSES


def task_sentence(inferred: InferredTask, path: Path, task: str) -> str:
    """Return the line that tells the task and its columns before the work starts."""
    if path.is_dir():
        return f"task: {task}, a folder of images for each class"
    columns = inferred.columns.named
    parts = [
        f"{name} {' + '.join(map(repr, columns[name] if name == 'text' else [columns[name]]))}" for name in columns
    ]
    sentence = f"task: {task}, from {' and '.join(parts)}"
    if inferred.depends_on_labels and task == NUMBERS:
        sentence += f"; the labels are numbers with fractions: --task {CLASSES} takes them as classes"
    return sentence


def flags_text(names: Iterable[str]) -> str:
    """Return flags as text, such as ``--prompt and --response``."""
    return " and ".join(f"--{name}" for name in names)
