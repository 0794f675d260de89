"""Inference of the task and the columns of data, from what the user names and what the file has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.label_sets import DEFAULT_SEPARATOR, split_names
from taskedge.training.data.table import Table, as_number
from taskedge.training.data.table_readers import column_names
from taskedge.training.tasks import TASKS, Columns

CLASSES, NUMBERS, IMAGES = "text-classification", "text-regression", "image-classification"
SETS = "multi-label-classification"
_LATER = ("source", "tokens", "messages", "turns")
"""First columns of sets that came later: a file with an older set is read by that one."""


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
    prompt and response, text and label, source and target, tokens and tags, text alone. Several label columns, or a
    separator of labels, are for sets of labels.

    Args:
        path: a folder or a table.
        given: columns that the user names.
        task: the task, if the user names it.

    Raises:
        InputError: columns that no task reads together, or too few of them; a file that cannot be read.
        UnknownName: no such task.
    """
    if not path.is_dir():
        given = split_label_columns(path, given)
    named, separator = given.named, given.label_separator
    named.pop("label_separator", None)
    if task is None and (given.labels or separator):
        task = SETS
    if separator and (task != SETS or given.labels):
        raise InputError("--label-separator is for one column that lists the labels of a row: leave it out, or --task")
    if path.is_dir():
        if task not in (None, IMAGES):
            raise InputError(f"{path} is a folder, which is read as images; for {task} name a file")
        if named:
            raise InputError(f"{path} is a folder, which has no columns: leave out {flags_text(named)}")
        return InferredTask(IMAGES, Columns())
    candidates = [(name, columns) for name in ([task] if task else TASKS) for columns in TASKS[name].column_sets]
    # classes before the kinds that came later; stable: equal sets stay by task name
    candidates.sort(key=lambda found: (-len(found[1]), found[1][0] in _LATER, found[1], found[0] == SETS))
    if not given.labels:  # no column is one of several by its default name
        candidates = [(name, columns) for name, columns in candidates if "labels" not in columns]
    fitting = [(name, columns) for name, columns in candidates if set(named) <= set(columns)]
    if not fitting:
        raise InputError(
            f"{task or 'no kind of task'} reads {flags_text(named)} together: name "
            + ", or ".join(dict.fromkeys(flags_text(columns) for _, columns in candidates))
        )
    available = [] if set(named) == set(fitting[0][1]) else column_names(path)
    free = set(available) - {*given.text, *given.labels, *(value for value in named.values() if isinstance(value, str))}
    for name, columns in fitting:
        if all(column in named or column in free for column in columns):
            found = default_columns(columns) | named
            if name == SETS and "label" in found:
                found["label_separator"] = separator or DEFAULT_SEPARATOR
            return InferredTask(name, Columns.of(found), depends_on_labels=task is None and name == CLASSES)
    raise InputError(
        f"{path}: say what to learn from: "
        + ", or ".join(dict.fromkeys(flags_text(columns) for _, columns in fitting))
        + f" (columns: {', '.join(map(repr, available)) or 'none'})"
    )


def split_label_columns(path: Path, given: Columns) -> Columns:
    """Return columns in which a label such as ``toxic,rude`` is two columns, unless one of the file has that name."""
    names = given.labels or (split_names(path, given.label) if given.label else ())
    if given.labels:
        names = tuple(part for name in names for part in split_names(path, name))
    return replace(given, label=names[0] if len(names) == 1 else None, labels=names if len(names) > 1 else ())


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
        f"{name.replace('_', ' ')} "
        + " + ".join(map(repr, columns[name] if isinstance(columns[name], list) else [columns[name]]))
        for name in columns
    ]
    sentence = f"task: {task}, from {' and '.join(parts)}"
    if inferred.depends_on_labels and task == NUMBERS:
        sentence += f"; the labels are numbers with fractions: --task {CLASSES} takes them as classes"
    return sentence


def flags_text(names: Iterable[str]) -> str:
    """Return flags as text, such as ``--prompt and --response``."""
    return " and ".join("--label twice or more" if name == "labels" else f"--{name}" for name in names)
