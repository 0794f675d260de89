"""The data of a run: training and held-out rows, read, checked and described."""

from __future__ import annotations

from dataclasses import dataclass

from taskedge.errors import InputError
from taskedge.training.data.infer_task import IMAGES, infer_task, task_of_labels, task_sentence
from taskedge.training.data.label_checks import data_summary, label_warnings
from taskedge.training.data.table import Table
from taskedge.training.tasks import TASKS, Columns, Log, Task
from taskedge.training.tune_config import TuneConfig


@dataclass(frozen=True)
class RunData:
    """Training and held-out data.

    Attributes:
        task: the kind of task that the data is for, not yet bound to a base.
        columns: the columns of ``train``.
        train: the training data.
        eval: the held-out data, if there is any.
    """

    task: Task
    columns: Columns
    train: Table
    eval: Table | None


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
    held_out = None
    if config.eval:
        columns = inferred.columns
        if config.train.is_dir() or config.eval.is_dir():  # only two tables have the same columns
            columns = infer_task(config.eval, Columns(), task_class.name).columns
        held_out = task_class.read(config.eval, columns, answers=True, log=log)
        task.check(held_out)
    data = RunData(task, inferred.columns, train, held_out)
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
