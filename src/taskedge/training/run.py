"""A prepared run of ``tune``: its settings and data, the loaded base, and what it selects and installs.

``prepare_run`` reads the data. ``Run.load`` loads the base and encodes the training rows. ``Run.with_config`` gives the
same run with other settings, which shares all that those settings do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskedge.backbone.candidates import head_parameters
from taskedge.backbone.coverage import experts_text, idle_text
from taskedge.backbone.loading import Base, load_base
from taskedge.backbone.storage.coding import CODINGS
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.selection.select import select
from taskedge.selection.support import Support
from taskedge.selection.support_file import read_support_file
from taskedge.training.avoided_files import avoided_files
from taskedge.training.class_weights import balanced_weights
from taskedge.training.continue_delta import support_of_delta
from taskedge.training.data.table import Table
from taskedge.training.data_order import random_order
from taskedge.training.dense_run import measure_changes
from taskedge.training.fastest_dtype import FASTEST, fastest_dtype
from taskedge.training.form_callbacks import form_support
from taskedge.training.guard import check_forward, guarded, in_file
from taskedge.training.head_warmup import warm_head
from taskedge.training.held_out_rows import part_rows
from taskedge.training.run_data import RunData, read_data
from taskedge.training.soft_prompts import prompt_rows, start_prompt
from taskedge.training.tasks import Batch, Collate, Log, Row, Task
from taskedge.training.thread_watch import set_threads
from taskedge.training.token_limit import token_limit
from taskedge.training.trainable_model import TrainableModel, install_support
from taskedge.training.tune_config import TuneConfig

RELOADING_SETTINGS = frozenset({"dtype", "weight_storage"})
"""Settings that need the base to be loaded again if they change."""


def prepare_run(config: TuneConfig, log: Log) -> Run:
    """Return a run whose data is read and checked. Its base is not loaded.

    Logs the task that the data is for. A batch size that was not given is set to that of the task.

    Raises:
        InputError: data or settings that cannot be used.
    """
    set_threads(config.threads, log)
    data = read_data(config, log)
    if config.dtype == FASTEST:
        config = config.model_copy(update={"dtype": fastest_dtype(data.task.name, log)})
    if "batch_size" not in config.model_fields_set:
        config = config.model_copy(update={"batch_size": data.task.batch_size})
        config.trainer_config()  # refuses a micro-batch that does not divide this batch size
    return Run(config, data, log)


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
    held_out_rows: list[Row] | None = None


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
        base = start_prompt(base, task, config, self.log)
        if config.weight_storage in CODINGS:  # mmap waits until weights are selected, because rules may need gradients
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
        rows, held_out = prompt_rows(base, task.encode(base, train, max_length, self.log)), None
        if self.data.parts is not None:
            rows, held_out = (part_rows(rows, part) for part in self.data.parts)
        self._encoded = _Encoded(task, max_length, rows, held_out_rows=held_out)

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

    def held_out_rows(self) -> tuple[list[Row], Path]:
        """Return the rows of the held-out loss while the run trains, and their file."""
        encoded, data = self._require_encoded(), self.data
        if encoded.held_out_rows is None and data.validation is not None:
            encoded.held_out_rows = self.encode(data.validation)
        if encoded.held_out_rows is not None:
            return encoded.held_out_rows, (data.train if data.validation is None else data.validation).path
        assert data.eval is not None, "the settings require it"
        return self.eval_rows(), data.eval.path

    def class_weights(self) -> Tensor | None:
        """Return the weights of the classes in the training loss, by the training rows; None for none."""
        if self.config.class_weights == "none":
            return None
        return balanced_weights([row["labels"] for row in self.rows], self.task.labels)

    def encode(self, table: Table) -> list[Row]:
        """Return the rows of a table with answers, as the model takes them."""
        return prompt_rows(self.base, self.task.encode(self.base, table, self.max_length, self.log))

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
        self._calibrating = []

    @property
    def rows_per_calibration_batch(self) -> int:
        """Rows of a calibration batch: those of a pass, if only sums over inputs count.

        Gradients have weights by batch (``Σ_batches g²``), so rules that need them see whole batches.
        """
        config = self.config
        return config.batch_size if config.needs_gradients else config.trainer_config().rows_per_pass

    def select(self, batches: Iterable[Batch] | None = None) -> Support:
        """Return the support that these batches select, by default the calibration batches; some forms need none."""
        config = self.config
        if (support := form_support(self.base.model, config)) is not None:
            return support
        if config.from_delta is not None:
            batches = self.calibration_batches() if batches is None else batches
            with in_file(self.data.train.path):
                return support_of_delta(
                    config.from_delta,
                    self.base.model,
                    self.task.name,
                    self.task.labels,
                    self.full_names,
                    batches,
                    self.log,
                )
        if config.support_file is not None:
            return read_support_file(config.support_file, self.base.model, self.task.labels)
        if batches is None:
            what = "weights" if config.columns is None else f"{config.columns} columns of each input"
            self.log(f"selecting {what} by rule {config.select_kwargs()['rule']!r} on {config.calibration} batches")
            batches = self.calibration_batches()
        model = self.base.model
        chosen = config.select_kwargs() | avoided_files(config.avoid or (), self.log)
        with in_file(self.data.train.path), guarded(model, self.rows, lambda: self._calibrating, self.collate):
            if config.needs_dense_run:
                settings = config.dense_run_settings() | {"head": self.full_names, "log": self.log}
                with measure_changes(model, batches, self.rows, self.collate, **settings) as statistics:
                    support = select(model, statistics=statistics, **chosen)
                support.settings.update(change_epochs=config.change_epochs, change_lr=config.change_lr)
            else:
                support = select(model, batches, **chosen)
        if idle := support.settings.get("never_ran"):
            self.log(idle_text(self.base.model, idle))
        if text := experts_text(model, support.linears):
            self.log(text)
        return support

    def install(self, support: Support) -> TrainableModel:
        """Install the support in the base's model, in the configured form, with the fully trained parameters."""
        return install_support(self.base.model, support, self.config, self.full_names, self.log)

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
