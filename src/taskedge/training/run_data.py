"""The data of a run: training and held-out rows, read, checked and described."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from taskedge.errors import InputError
from taskedge.training.class_weights import rare_class_hint
from taskedge.training.classification import classifies_rows
from taskedge.training.data.infer_task import IMAGES, SETS, infer_task, task_of_labels, task_sentence
from taskedge.training.data.label_checks import data_summary, label_warnings
from taskedge.training.data.table import Table
from taskedge.training.held_out_rows import parse_validation, split_rows
from taskedge.training.tasks import TASKS, Columns, Log, Task
from taskedge.training.tasks.multi_label import constant_labels, rarest_labels
from taskedge.training.tune_config import TuneConfig


@dataclass(frozen=True)
class RunData:
    """Training and held-out data.

    Attributes:
        task: the kind of task that the data is for, not yet bound to a base.
        columns: the columns of ``train``.
        train: the training data.
        eval: the held-out data, if there is any.
        validation: data for the held-out loss while the run trains, if they are in a file of their own.
        parts: indices of the rows of ``train`` to train on and to hold out; None to train on all.
    """

    task: Task
    columns: Columns
    train: Table
    eval: Table | None
    validation: Table | None = None
    parts: tuple[list[int], list[int]] | None = None


def read_data(config: TuneConfig, log: Log) -> RunData:
    """Read the training and held-out data, and infer the task.

    Raises:
        InputError: data that cannot be used.
    """
    inferred = infer_task(config.train, Columns.of(config.model_dump()), config.task)
    task_class = TASKS[inferred.task]
    train = task_class.read(config.train, inferred.columns, answers=True, log=log)
    if inferred.depends_on_labels:
        task_class = TASKS[task_of_labels(train)]
    log(task_sentence(inferred, config.train, task_class.name))
    task = task_class.from_table(train, inferred.columns)
    validation = None if config.validation is None else parse_validation(config.validation)

    def read_held_out(path: Path) -> Table:
        columns = inferred.columns
        if config.train.is_dir() or path.is_dir():  # only two tables have the same columns
            columns = infer_task(path, Columns(), task_class.name).columns
        table = task_class.read(path, columns, answers=True, log=log)
        task.check(table)
        return table

    held_out = None if config.eval is None else read_held_out(config.eval)
    watched = read_held_out(validation) if isinstance(validation, Path) else None
    parts = None
    if isinstance(validation, float):
        classes = train.labels if classifies_rows(task) else rarest_labels(train) if task.name == SETS else None
        training, rest = split_rows(len(train), validation, config.seed, classes)
        parts = (training, rest)
    data = RunData(task, inferred.columns, train, held_out, watched, parts)
    _log_data(data, config, may_be_numbers=inferred.depends_on_labels, log=log)
    return data


def _log_data(data: RunData, config: TuneConfig, *, may_be_numbers: bool, log: Log) -> None:
    """Log a summary of the data and warnings about the labels.

    Raises:
        InputError: there are warnings, and the run is ``strict``.
    """
    num_classes = len(data.task.labels)
    for table in (data.train, data.eval):
        if table is not None and table.understood:
            log(table.understood)
    for line in data_summary(data.train, data.eval, num_classes, images=data.task.name == IMAGES):
        log(line)
    warnings = label_warnings(data.train, may_be_numbers=may_be_numbers) if num_classes else []
    if warnings and config.strict:
        raise InputError(f"{'; '.join(warnings)}: correct the data, or leave out --strict")
    for warning in warnings:
        log(f"warning: {warning}")
    if data.validation is not None:
        log(f"{len(data.validation):,} rows of {data.validation.path} for the held-out loss")
    if data.parts is not None:
        training, held_out = data.parts
        in_training = {data.train.texts[index] for index in training}
        shared = sum(data.train.texts[index] in in_training for index in held_out)
        of_sets = "of the rows of each label that is their rarest" if data.task.name == SETS else "of all rows"
        of_every = "of every class" if classifies_rows(data.task) else of_sets
        log(
            f"--validation {config.validation}: {len(held_out):,} of {len(data.train):,} rows are held out, the same "
            f"share {of_every} (seed {config.seed}), and {len(training):,} train; {shared:,} of those held out are "
            "in the rest too"
        )
    is_weighted = config.class_weights != "none"
    if data.task.name == SETS:
        if line := constant_labels(data.train, data.task.labels):
            log(f"warning: {line}")
        counts = dict.fromkeys(data.task.labels, 0) | Counter(data.train.answers or [])
        if hint := rare_class_hint(counts, weighted=is_weighted, rows_with_sets=len(data.train)):
            log(hint)
    elif classifies_rows(data.task):
        if hint := rare_class_hint(Counter(data.train.labels or []), weighted=is_weighted):
            log(hint)
    elif is_weighted:
        raise InputError(
            f"--class-weights {config.class_weights}: the task {data.task.name} has no class for each row: leave it out"
        )
