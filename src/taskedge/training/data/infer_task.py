"""Which kind of task data is for, and in which columns it stands: by what the user names and what the file has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.table import Table, as_number, column_names
from taskedge.training.tasks import TASKS, Columns

CLASSES, NUMBERS, IMAGES = "text-classification", "text-regression", "image-classification"


@dataclass(frozen=True)
class Inferred:
    """What is known before the rows are read."""

    task: str
    columns: Columns
    open: bool = False
    """Whether the labels decide (:func:`by_labels`)."""


def infer(path: Path, asked: Columns, task: str | None = None) -> Inferred:
    """The task that the data at ``path`` is for, and its columns.

    A folder holds images of classes. In a table a column that the user does not name is taken by its customary name
    (``text``, ``label``, ``prompt``, ``response``, ``image``) where the file has one; then the first that is complete
    counts: image and label, prompt and response, text and label, text alone.

    Args:
        path: a folder or a table.
        asked: columns that the user names.
        task: the kind, where the user says it.

    Raises:
        InputError: columns that no kind reads together, or too few of them; a file that cannot be read.
        UnknownName: no such kind.
    """
    named = asked.named
    if path.is_dir():
        if task not in (None, IMAGES):
            raise InputError(f"{path} is a folder, which is read as images; for {task} name a file")
        if named:
            raise InputError(f"{path} is a folder, which has no columns: leave out {flags(named)}")
        return Inferred(IMAGES, Columns())
    every = [(kind, wanted) for kind in ((task,) if task else TASKS) for wanted in TASKS[kind].reads]
    every.sort(key=lambda one: (-len(one[1]), one[1]))  # a stable sort: of two kinds that read the same, by their names
    fitting = [one for one in every if set(named) <= set(one[1])]
    if not fitting:
        raise InputError(
            f"{task or 'no kind of task'} reads {flags(named)} together: name "
            + ", or ".join(dict.fromkeys(flags(wanted) for _, wanted in every))
        )
    there = [] if set(named) == set(fitting[0][1]) else column_names(path)
    free = set(there) - {*asked.text, asked.label, asked.prompt, asked.response, asked.image}
    for kind, wanted in fitting:
        if all(name in named or name in free for name in wanted):
            columns = customary(wanted) | named
            return Inferred(kind, Columns.of(columns), open=task is None and kind == CLASSES)
    raise InputError(
        f"{path}: say what to learn from: "
        + ", or ".join(dict.fromkeys(flags(wanted) for _, wanted in fitting))
        + f" (columns: {', '.join(map(repr, there)) or 'none'})"
    )


def customary(names: Iterable[str]) -> dict[str, Any]:
    """What these columns are called where no one says otherwise, as ``Columns.of`` takes it."""
    return {name: [name] if name == "text" else name for name in names}


def by_labels(table: Table) -> str:
    """Labels that are all numbers, some of them with a fraction, are numbers to find; others are classes."""
    numbers = [as_number(label) for label in table.labels or ()]
    fractions = any(number is not None and number != int(number) for number in numbers)
    return NUMBERS if fractions and None not in numbers else CLASSES


def sentence(found: Inferred, path: Path, task: str) -> str:
    """What is told before the work starts."""
    if path.is_dir():
        return f"task: {task}, a folder of images for each class"
    columns = found.columns.named
    parts = [
        f"{name} {' + '.join(map(repr, columns[name] if name == 'text' else [columns[name]]))}" for name in columns
    ]
    said = f"task: {task}, from {' and '.join(parts)}"
    if found.open and task == NUMBERS:
        said += f"; the labels are numbers with fractions: --task {CLASSES} takes them as classes"
    return said


def flags(names: Iterable[str]) -> str:
    """``--prompt and --response``."""
    return " and ".join(f"--{name}" for name in names)
