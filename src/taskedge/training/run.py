"""A prepared run of ``tune``: its settings and data, the loaded base, and what it selects and installs.

``prepare_run`` reads the data. ``Run.load`` loads the base and encodes the training rows. ``Run.with_config`` gives the
same run with other settings, which shares all that those settings do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.coverage import experts_text, idle_text
from taskedge.backbone.loading import Base, load_base
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError
from taskedge.forms.dash import add_directions
from taskedge.forms.install import fuse, install
from taskedge.selection.select import select
from taskedge.selection.support import Support
from taskedge.selection.support_file import read_support_file
from taskedge.training.data.infer_task import IMAGES, infer_task, task_of_labels, task_sentence
from taskedge.training.data.label_checks import data_summary, label_warnings
from taskedge.training.data.table import Table
from taskedge.training.data_order import random_order
from taskedge.training.dense_run import measure_changes
from taskedge.training.guard import check_forward, guarded, in_file
from taskedge.training.head_warmup import warm_head
from taskedge.training.lora import PeftLora, lora_support
from taskedge.training.memory.mezo import MEZO_WARNING
from taskedge.training.tasks import TASKS, Batch, Collate, Columns, Log, Row, Task
from taskedge.training.token_limit import token_limit
from taskedge.training.tune_config import TuneConfig

RELOADING_SETTINGS = frozenset({"dtype", "weight_storage"})
"""Settings that need the base to be loaded again if they change."""


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


class TrainableModel(Protocol):
    """A base model with something installed that trains."""

    @property
    def model(self) -> nn.Module:
        """The model."""
        ...

    def extract(self) -> Delta:
        """Return what it has learned."""
        ...

    def fuse(self) -> nn.Module:
        """Restore plain layers. Their weights are unspecified afterwards; apply a delta before use."""
        ...


@dataclass(frozen=True)
class InstalledModel:
    """A model with a support installed by :func:`taskedge.install`: a :class:`TrainableModel`."""

    model: nn.Module

    def extract(self) -> Delta:
        """Return what it has learned."""
        return extract(self.model)

    def fuse(self) -> nn.Module:
        """Restore plain layers."""
        return fuse(self.model)


def prepare_run(config: TuneConfig, log: Log) -> Run:
    """Return a run whose data is read and checked. Its base is not loaded.

    Logs the task that the data is for. A batch size that was not given is set to that of the task.

    Raises:
        InputError: data or settings that cannot be used.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = read_data(config, log)
    if "batch_size" not in config.model_fields_set:
        config = config.model_copy(update={"batch_size": data.task.batch_size})
        config.trainer_config()  # refuses a micro-batch that does not divide this batch size
    return Run(config, data, log)


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


@dataclass(frozen=True)
class _Loaded:
    """Base and everything that depends on it. A collator may hold the base, so it belongs here."""

    base: Base
    collate: Collate
    full_names: list[str]


@dataclass
class _Encoded:
    """Rows that depend on the base's tokenizer or image processor only."""

    task: Task
    max_length: int
    rows: list[Row]
    eval_rows: list[Row] | None = None


class Run:
    """A run of ``tune``.

    Attributes:
        config: its settings.
        data: its data.
        log: called with status lines.
    """

    def __init__(self, config: TuneConfig, data: RunData, log: Log) -> None:
        self.config, self.data, self.log = config, data, log
        self._loaded: _Loaded | None = None
        self._encoded: _Encoded | None = None
        self._calibrating: Sequence[int] = ()  # rows of the present calibration batch

    def with_config(self, changes: Mapping[str, Any], *, log: Log | None = None) -> Run:
        """Return the run with other settings.

        Data and encoded rows are shared. The loaded base is shared as well, unless ``changes`` need another one.
        """
        run = Run(self.config.model_copy(update=dict(changes)), self.data, log or self.log)
        run._encoded = self._encoded
        if not RELOADING_SETTINGS & changes.keys():
            run._loaded = self._loaded
        return run

    def load(self) -> None:
        """Load the base and encode the training rows, whichever is not done yet."""
        self.load_base()
        self.encode_rows()

    def load_base(self) -> None:
        """Load the base with a head for the task, unless it is loaded. A new head depends on the seed.

        Raises:
            InputError: the base cannot be used, or not for this task.
        """
        from transformers import set_seed

        if self._loaded is not None:
            return
        config, task = self.config, self.data.task
        self.log(f"loading {config.model}")
        set_seed(config.seed)
        base = load_base(task.name, config.model, task.labels, dtype=config.dtype, log=self.log)
        if config.weight_storage == "int8":  # mmap waits until weights are selected, because rules may need gradients
            set_weight_storage(base.model, config.weight_storage, self.log)
        full_names = list(dict.fromkeys([*head_parameters(base.model), *base.new_parameters]))
        self._loaded = _Loaded(base, task.collate(base), full_names)

    def encode_rows(self) -> None:
        """Bind the task to the loaded base and encode the training rows, unless that is done.

        Raises:
            InputError: the base cannot be used for this task.
        """
        if self._encoded is not None:
            return
        base, train = self.base, self.data.train
        max_length = token_limit(self.data.task, base, self.config.max_length, self.log)
        task = self.data.task.bind(base, train, max_length, self.config.max_new_tokens, self.log)
        self._encoded = _Encoded(task, max_length, task.encode(base, train, max_length, self.log))

    def release_base(self) -> None:
        """Drop the loaded base, so that another one can be loaded in its place."""
        self._loaded = None

    @property
    def base(self) -> Base:
        """The loaded base."""
        return self._require_loaded().base

    @property
    def collate(self) -> Collate:
        """Makes a batch of rows."""
        return self._require_loaded().collate

    @property
    def full_names(self) -> list[str]:
        """Names of the fully trained parameters: the head, and others that the base's files do not have."""
        return self._require_loaded().full_names

    @property
    def num_full_parameters(self) -> int:
        """Number of fully trained parameters."""
        parameters = dict(self.base.model.named_parameters())
        return sum(parameters[name].numel() for name in self.full_names)

    @property
    def task(self) -> Task:
        """The task, bound to the base."""
        return self._require_encoded().task

    @property
    def max_length(self) -> int:
        """Tokens at which texts are cut; 0 for images."""
        return self._require_encoded().max_length

    @property
    def rows(self) -> list[Row]:
        """The encoded training rows."""
        return self._require_encoded().rows

    def eval_rows(self) -> list[Row]:
        """Encode the held-out rows on the first call, and return them; none if there are no such data."""
        encoded = self._require_encoded()
        if encoded.eval_rows is None:
            table = self.data.eval
            encoded.eval_rows = [] if table is None else self.encode(table)
        return encoded.eval_rows

    def encode(self, table: Table) -> list[Row]:
        """Return the rows of a table with answers, as the model takes them."""
        return self.task.encode(self.base, table, self.max_length, self.log)

    def check_forward(self) -> None:
        """Run the base once on the longest training rows and once on the first ones, before any work is spent.

        Raises:
            InputError: the base fails on a row; the message names it.
        """
        with in_file(self.data.train.path):
            check_forward(self.base.model, self.rows, self.collate, self.config.trainer_config().rows_per_pass)

    def warm_head(self) -> None:
        """Train the head alone if the settings ask for it, before weights are selected.

        Raises:
            InputError: the base has no head that can be trained alone.
        """
        if not self.config.head_warmup:
            return
        with in_file(self.data.train.path):
            warmed = warm_head(self.base.model, self.rows, self.collate, self.config.trainer_config().rows_per_pass)
        self.log(str(warmed))

    def calibration_batches(self) -> Iterator[Batch]:
        """Yield the batches on which the selection takes statistics: the first rows of a seeded order."""
        order = random_order(len(self.rows), self.config.seed)
        order = order[: self.config.calibration * self.config.batch_size]
        size = self.rows_per_calibration_batch
        for start in range(0, len(order), size):
            self._calibrating = order[start : start + size]
            yield self.collate([self.rows[index] for index in self._calibrating])

    @property
    def rows_per_calibration_batch(self) -> int:
        """Rows of a calibration batch: those of a pass, if only sums over inputs count.

        Gradients have weights by batch (``Σ_batches g²``), so rules that need them see whole batches.
        """
        config = self.config
        return config.batch_size if config.needs_gradients else config.trainer_config().rows_per_pass

    def select(self, batches: Iterable[Batch] | None = None) -> Support:
        """Return the support that these batches select, by default the calibration batches; LoRA needs none."""
        config = self.config
        if config.form == "lora":
            return lora_support(self.base.model, config.rank, config.depth)
        if config.support_file is not None:
            return read_support_file(config.support_file, self.base.model, self.task.labels)
        if batches is None:
            what = "weights" if config.columns is None else f"{config.columns} columns of each input"
            self.log(f"selecting {what} by rule {config.select_kwargs()['rule']!r} on {config.calibration} batches")
            batches = self.calibration_batches()
        model = self.base.model
        with in_file(self.data.train.path), guarded(model, self.rows, lambda: self._calibrating, self.collate):
            if config.needs_dense_run:
                settings = config.dense_run_settings() | {"head": self.full_names, "log": self.log}
                with measure_changes(model, batches, self.rows, self.collate, **settings) as statistics:
                    support = select(model, statistics=statistics, **config.select_kwargs())
                support.settings.update(change_epochs=config.change_epochs, change_lr=config.change_lr)
            else:
                support = select(model, batches, **config.select_kwargs())
        if idle := support.settings.get("never_ran"):
            self.log(idle_text(self.base.model, idle))
        if text := experts_text(model, support.linears):
            self.log(text)
        return support

    def install(self, support: Support) -> TrainableModel:
        """Install the support in the base's model, in the configured form, with the fully trained parameters."""
        config, model = self.config, self.base.model
        if config.optimizer == "mezo":
            self.log(MEZO_WARNING)
        if config.weight_storage == "mmap":
            set_weight_storage(model, config.weight_storage, self.log)
        if config.form == "lora" and not config.dash:
            return PeftLora(model, support, self.full_names, config.alpha, config.seed)
        install(
            model,
            support,
            trainable=self.full_names,
            step=config.step,
            step_exponent=config.step_exponent,
            form="sparse" if config.dash else config.form,
            rank=config.rank if config.form == "sparse_lora" else None,
            alpha=config.alpha,
            seed=config.seed,
        )
        if config.dash:
            add_directions(model, config.directions)
        return InstalledModel(model)

    def num_trained_parameters(self, model: nn.Module) -> int:
        """Return the number of values that the optimizer moves, without the fully trained parameters."""
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return trained - self.num_full_parameters

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("the base is not loaded: call load_base() first")
        return self._loaded

    def _require_encoded(self) -> _Encoded:
        if self._encoded is None:
            raise RuntimeError("the rows are not encoded: call encode_rows() first")
        return self._encoded
