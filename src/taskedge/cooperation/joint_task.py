"""What the coordinator and the devices of a run have in common beside its settings: a base, a kind of task, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.backbone.cost_model import block_table
from taskedge.backbone.cost_table import BlockTable
from taskedge.backbone.linears import head_parameters
from taskedge.backbone.loading import Base, load_base
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta, Provenance
from taskedge.delta.file import load
from taskedge.errors import InputError
from taskedge.forms.install import fuse
from taskedge.training.data.infer_task import CLASSES, by_labels, infer
from taskedge.training.data.table import Table
from taskedge.training.run import cut_at
from taskedge.training.tasks import TASKS, Columns, Measures, Row, Say, Task

NUMBERS = "text-regression"


@dataclass(frozen=True)
class Asked:
    """What a user says of the model and the data."""

    model: str
    data: Path | None = None
    """A device's own data; for a coordinator an example of it, which may be left out where ``classes`` are named."""
    columns: Columns = Columns()  # noqa: RUF009  # it is frozen
    task: str | None = None
    classes: tuple[str, ...] = ()
    """All classes of the run, where the data does not hold every one."""
    max_length: int | None = None
    seed: int = 0
    """Of a fresh head; a device gets the coordinator's."""


@dataclass(frozen=True)
class JointTask:
    """A base and the task that a run tunes it for; :func:`joint_task` makes it."""

    base: Base
    task: Task
    columns: Columns
    max_length: int
    table: Table | None
    asked: Asked
    say: Say

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order that rows count them; empty where there are none."""
        return self.task.labels

    @property
    def whole(self) -> list[str]:
        """Parameters that train whole: the head, and whatever else the base's files do not hold."""
        return list(dict.fromkeys([*head_parameters(self.base.model), *self.base.fresh]))

    @cached_property
    def rows(self) -> list[Row]:
        """The table's rows, as the model takes them."""
        assert self.table is not None
        return self.encode(self.table)

    def encode(self, table: Table) -> list[Row]:
        """A table with answers, as the model takes it."""
        return self.task.encode(self.base, table, self.max_length, self.say)

    def training(self) -> LocalTraining:
        """A device's part: the model and the table's rows."""
        return LocalTraining(self.base.model, self.rows, self.task.collate(self.base), self.whole)

    def costs(self) -> BlockTable | None:
        """The block table of a model of images; None for texts, which the coordinator counts itself."""
        if self.base.images is None:
            return None
        from PIL import Image

        model: nn.Module = self.base.model
        body = getattr(model, getattr(model, "base_model_prefix", "") or "-", model)
        blank = self.base.images([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
        pixels = blank.to(next(model.parameters()).dtype)
        return block_table(body, {"pixel_values": pixels}, share=0.0, name=type(model).__name__)

    def told(self, delta: Delta, training: Mapping[str, Any]) -> Delta:
        """The delta with what ``eval`` and ``predict`` must know of the task, and with the settings of its run."""
        about = {**training, **self.columns.named, **self.task.about()}
        if self.max_length:
            about["max_length"] = self.max_length
        return delta.with_provenance(base=self.asked.model, task=self.task.name, labels=self.labels, training=about)

    def evaluate(self, written: Path, table: Table, batch_size: int) -> Measures:
        """How well a delta of this base does on a table with answers; the model carries it afterwards."""
        apply(fuse(self.base.model), load(written), force=True)
        return self.task.evaluate(self.base.model, self.base, self.encode(table), batch_size, lambda _: None)


def joint_task(asked: Asked, say: Say) -> JointTask:
    """Reads the data and loads the base.

    Raises:
        InputError: either cannot be used, or they do not belong together; a kind of task that cannot be trained so.
    """
    from transformers import set_seed

    task, columns, table = _task(asked, say)
    say(f"loading {asked.model}")
    set_seed(asked.seed)
    base = load_base(task.name, asked.model, task.labels, say=say)
    max_length = cut_at(task, base, asked.max_length, say)
    return JointTask(base, task.meet(base, table, max_length), columns, max_length, table, asked, say)


def read_like(joint: JointTask, path: Path, say: Say) -> Table:
    """Reads more data of the same task, with answers.

    Raises:
        InputError: it cannot be read, or has answers that the task does not know.
    """
    same = joint.columns.named and not path.is_dir()
    columns = joint.columns if same else infer(path, Columns(), joint.task.name).columns
    table = joint.task.read(path, columns, answers=True, say=say)
    joint.task.check(table)
    return table


def _task(asked: Asked, say: Say) -> tuple[Task, Columns, Table | None]:
    if asked.data is None:
        if not asked.classes:
            raise InputError("what is trained is not known: name the classes with --class, or a table with --eval")
        kind = _supported(TASKS[asked.task or CLASSES])
        return _of_classes(kind, asked.classes), asked.columns, None
    found = infer(asked.data, asked.columns, asked.task)
    kind = TASKS[found.task]
    table = kind.read(asked.data, found.columns, answers=True, say=say)
    if found.open and not asked.classes:
        kind = TASKS[by_labels(table)]
    _supported(kind)
    if asked.classes:
        task = _of_classes(kind, asked.classes)
        task.check(table)
        return task, found.columns, table
    try:
        return kind.learn(table, found.columns), found.columns, table
    except InputError as error:
        raise InputError(f"{error}; where other devices have the others, name all with --class") from None


def _supported(kind: type[Task]) -> type[Task]:
    if kind.name == NUMBERS:
        raise InputError(f"{kind.name} cannot be trained by several devices: each would scale its numbers its own way")
    return kind


def _of_classes(kind: type[Task], classes: tuple[str, ...]) -> Task:
    if "label" not in kind.reads[0]:
        raise InputError(f"--class means nothing for {kind.name}: leave it out")
    if len(set(classes)) < max(2, len(classes)):
        raise InputError(f"--class {' --class '.join(classes)}: name at least two, each once")
    return kind.recall(Provenance(labels=classes))
