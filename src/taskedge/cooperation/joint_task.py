"""The task that the coordinator and the devices of a run share: the base, the kind of task, and the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.cost_model import block_table
from taskedge.backbone.cost_table import BlockTable
from taskedge.backbone.loading import Base, load_base
from taskedge.cooperation.device.local_training import MIN_ROWS, LocalTraining
from taskedge.cooperation.device.privacy_account import PrivacyAccount
from taskedge.cooperation.device.private_training import PrivateTraining
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta, Provenance
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.forms.install import fuse
from taskedge.training.data.infer_task import CLASSES, NUMBERS, SETS, infer_task, task_of_labels
from taskedge.training.data.label_checks import understood_lines
from taskedge.training.data.table import Table
from taskedge.training.tasks import TASKS, Columns, Log, Measures, Row, Task
from taskedge.training.token_limit import token_limit


@dataclass(frozen=True)
class TaskSpec:
    """A user's description of the model and the data."""

    model: str
    data: Path | None = None
    """The data of a device. For a coordinator, an example of it; None if ``classes`` are given."""
    columns: Columns = Columns()  # noqa: RUF009  # it is frozen
    task: str | None = None
    classes: tuple[str, ...] = ()
    """All classes of the run; needed if the data does not contain every class."""
    max_length: int | None = None
    seed: int = 0
    """Seed of a new head. A device gets the head of the coordinator."""


@dataclass(frozen=True)
class JointTask:
    """A base and the task that a run trains it for. Made by :func:`joint_task`."""

    base: Base
    task: Task
    columns: Columns
    max_length: int
    table: Table | None
    spec: TaskSpec
    log: Log

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the rows' label indices; empty if the task has none."""
        return self.task.labels

    @property
    def full_parameters(self) -> list[str]:
        """Names of the parameters that are trained in full: the head, and others that are not in the base's files."""
        return list(dict.fromkeys([*head_parameters(self.base.model), *self.base.new_parameters]))

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table, encoded for the model."""
        assert self.table is not None
        return self.encode(self.table)

    def encode(self, table: Table) -> list[Row]:
        """Return the rows of a table with answers, encoded for the model."""
        return self.task.encode(self.base, table, self.max_length, self.log)

    def local_training(self, *, min_rows: int = MIN_ROWS, account: PrivacyAccount | None = None) -> LocalTraining:
        """Return what a device trains with: the model and the rows of the table.

        Args:
            min_rows: Fewest rows of a step.
            account: What was spent of the rows' privacy budget; None: answers are not private.
        """
        given = (self.base.model, self.rows, self.task.collate(self.base), self.full_parameters)
        if account is None:
            return LocalTraining(*given, min_rows=min_rows)
        return PrivateTraining(*given, account=account, min_rows=min_rows)

    def block_table(self) -> BlockTable | None:
        """Return the block table of an image model; None for a text model, which the coordinator computes itself."""
        if self.base.image_processor is None:
            return None
        from PIL import Image

        model: nn.Module = self.base.model
        body = getattr(model, getattr(model, "base_model_prefix", "") or "-", model)
        blank = self.base.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        pixels = blank.to(next(model.parameters()).dtype)
        return block_table(body, {"pixel_values": pixels}, share=0.0, name=type(model).__name__)

    def with_run_provenance(self, delta: Delta, training: Mapping[str, Any]) -> Delta:
        """Return the delta with the provenance that ``eval`` and ``predict`` need, and the settings of its run."""
        provenance = {**training, **self.columns.named, **self.task.to_provenance()}
        if self.max_length:
            provenance["max_length"] = self.max_length
        if self.base.head:
            provenance["head"] = self.base.head
        return delta.with_provenance(base=self.spec.model, task=self.task.name, labels=self.labels, training=provenance)

    def evaluate(self, delta_path: Path, table: Table, batch_size: int) -> Measures:
        """Return the measures of a delta on a table with answers. The model has the delta applied afterwards."""
        apply(fuse(self.base.model), load(delta_path), force=True)
        return self.task.evaluate(self.base.model, self.base, self.encode(table), batch_size, lambda _: None)


def joint_task(spec: TaskSpec, log: Log) -> JointTask:
    """Read the data and load the base.

    Raises:
        InputError: Data or base cannot be used, or not together, or several devices cannot train this kind of task.
    """
    from transformers import set_seed

    task, columns, table = _make_task(spec, log)
    log(f"loading {spec.model}")
    set_seed(spec.seed)
    base = load_base(task.name, spec.model, task.labels, log=log)
    max_length = token_limit(task, base, spec.max_length, log)
    return JointTask(base, task.bind(base, table, max_length, log=log), columns, max_length, table, spec, log)


def read_table_like(joint: JointTask, path: Path, log: Log) -> Table:
    """Read more data of the same task, with answers.

    Raises:
        InputError: The data cannot be read, or has answers that the task does not have.
    """
    same_columns = joint.columns.named and not path.is_dir()
    columns = joint.columns if same_columns else infer_task(path, Columns(), joint.task.name).columns
    table = joint.task.read(path, columns, answers=True, log=log)
    for line in understood_lines(table, len(joint.task.labels)):
        log(line)
    joint.task.check(table)
    return table


def _make_task(spec: TaskSpec, log: Log) -> tuple[Task, Columns, Table | None]:
    if spec.data is None:
        if not spec.classes:
            raise InputError("the task is not known: name the classes with --class, or a table with --eval")
        kind = _check_supported(TASKS[spec.task or CLASSES])
        return _task_of_classes(kind, spec.classes), spec.columns, None
    inferred = infer_task(spec.data, spec.columns, spec.task)
    kind = TASKS[inferred.task]
    table = kind.read(spec.data, inferred.columns, answers=True, log=log)
    for line in understood_lines(table, len(set(table.labels or ())) if "label" in inferred.columns.named else 0):
        log(line)
    if inferred.depends_on_labels and not spec.classes:
        kind = TASKS[task_of_labels(table)]
    _check_supported(kind)
    if spec.classes:
        task = _task_of_classes(kind, spec.classes)
        task.check(table)
        return task, inferred.columns, table
    try:
        return kind.from_table(table, inferred.columns), inferred.columns, table
    except InputError as error:
        raise InputError(f"{error}; if other devices have the others, name all with --class") from None


def _check_supported(kind: type[Task]) -> type[Task]:
    if kind.name == NUMBERS:  # each device would scale its numbers differently
        raise InputError(f"{kind.name} cannot be trained by several devices: each would scale its numbers its own way")
    if kind.name == SETS:  # devices agree on classes by the labels that each has
        raise InputError(
            f"{kind.name} cannot be trained by several devices: they agree on one class a row. Train it with 'taskedge "
            "tune', or one label a run with --task text-classification"
        )
    if kind.name == "dialogue-state":  # slots are those of a device's own data
        raise InputError(
            f"{kind.name} cannot be trained by several devices: each would know the slots of its data only"
        )
    return kind


def _task_of_classes(kind: type[Task], classes: tuple[str, ...]) -> Task:
    if "label" not in kind.column_sets[0]:
        raise InputError(f"--class means nothing for {kind.name}: leave it out")
    if len(set(classes)) < max(2, len(classes)):
        raise InputError(f"--class {' --class '.join(classes)}: name at least two, each once")
    return kind.from_provenance(Provenance(labels=classes))
