"""What a run of ``tune`` and its plan share: data, base and support, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from taskedge.backbone.layer_adapters import Features
from taskedge.backbone.linears import candidates, candidates_within, head_parameters
from taskedge.backbone.loading import Base, load_base
from taskedge.backbone.storage.set_storage import hold
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.forms.install import fuse, install
from taskedge.selection.rules import RULES
from taskedge.selection.select import select
from taskedge.selection.support import Support
from taskedge.training.data.infer_task import by_labels, infer, sentence
from taskedge.training.data.table import Table
from taskedge.training.lora import PeftLora
from taskedge.training.memory.mezo import CAUTION
from taskedge.training.tasks import TASKS, Batch, Collate, Columns, Row, Say, Task
from taskedge.training.tune_config import TuneSettings


@dataclass(frozen=True)
class Data:
    """The examples of a run, where they stand, and the kind of task that they are for."""

    task: Task
    columns: Columns
    train: Table
    eval: Table | None


class Run:
    """One run: its settings, and what follows from them."""

    def __init__(self, settings: TuneSettings, say: Say) -> None:
        self._given, self.say = settings, say
        self._lora: PeftLora | None = None
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    @cached_property
    def settings(self) -> TuneSettings:
        """As they were given; where no batch size was, with that of the kind of task, so this reads the data."""
        if "batch_size" in self._given.model_fields_set:
            return self._given
        settled = self._given.model_copy(update={"batch_size": self.data.task.batch_size})
        settled.fit().passes  # noqa: B018  # refuses a micro-batch that does not divide this batch
        return settled

    @cached_property
    def data(self) -> Data:
        """Training and held-out data, read and checked; says what task they are for."""
        s = self._given
        found = infer(s.train, Columns.of(s.model_dump()), s.task)
        kind = TASKS[found.task]
        train = kind.read(s.train, found.columns, answers=True, say=self.say)
        if found.open:
            kind = TASKS[by_labels(train)]
        self.say(sentence(found, s.train, kind.name))
        task = kind.learn(train, found.columns)
        held_out = None
        if s.eval:
            here = s.train.is_dir() or s.eval.is_dir()  # only tables of one run share their columns
            columns = infer(s.eval, Columns(), kind.name).columns if here else found.columns
            held_out = kind.read(s.eval, columns, answers=True, say=self.say)
            task.check(held_out)
        return Data(task, found.columns, train, held_out)

    @cached_property
    def base(self) -> Base:
        """The base with a head for the task; a fresh head comes from the seed."""
        from transformers import set_seed

        s, task = self.settings, self.data.task
        self.say(f"loading {s.model}")
        set_seed(s.seed)
        base = load_base(task.name, s.model, task.labels, dtype=s.dtype, say=self.say)
        if s.base == "int8":  # a mapped one is held once the weights are chosen: rules may look at gradients
            hold(base.model, s.base, self.say)
        return base

    @cached_property
    def task(self) -> Task:
        """The task, ready for the base."""
        return self.data.task.meet(self.base, self.data.train, self.max_length, self.settings.max_new_tokens)

    @cached_property
    def max_length(self) -> int:
        """Tokens: what the settings or the task say, or what the base can take, if that is less; 0 for images."""
        return cut_at(self.data.task, self.base, self.settings.max_length, self.say)

    @cached_property
    def rows(self) -> list[Row]:
        """The training rows, as the model takes them."""
        return self.encode(self.data.train)

    def encode(self, table: Table) -> list[Row]:
        """A table with answers, as the model takes it."""
        return self.task.encode(self.base, table, self.max_length, self.say)

    @cached_property
    def collate(self) -> Collate:
        """Makes a batch of rows."""
        return self.task.collate(self.base)

    @cached_property
    def whole(self) -> list[str]:
        """Parameters that train whole: the head, and whatever else the base's files do not hold."""
        return list(dict.fromkeys([*head_parameters(self.base.model), *self.base.fresh]))

    @property
    def whole_parameters(self) -> int:
        """How many numbers these are."""
        parameters = dict(self.base.model.named_parameters())
        return sum(parameters[name].numel() for name in self.whole)

    @cached_property
    def eval_rows(self) -> list[Row]:
        """The held-out rows, as the model takes them; none where there are no such data."""
        return [] if self.data.eval is None else self.encode(self.data.eval)

    def select(self) -> Support:
        """Chooses the entries by looking at the first batches of the data in a seeded order; LoRA looks at none."""
        s, rows = self.settings, self.rows
        if s.form != "lora":
            self.say(f"selecting weights by rule {s.rule!r} on {s.calibration} batches")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(s.seed)).tolist()
        seen, at_once = min(len(order), s.calibration * s.batch_size), self.selected_at_once
        return self.choose(
            self.collate([rows[place] for place in order[start : start + at_once]]) for start in range(0, seen, at_once)
        )

    @property
    def selected_at_once(self) -> int:
        """Rows of a calibration batch: a micro-batch, where sums over inputs are all that counts.

        Gradients weigh by batch (``Σ_batches g²``), so rules that need them look at whole batches.
        """
        s = self.settings
        return s.batch_size if RULES[s.rule].of_gradients else s.fit().passes[0]

    def choose(self, batches: Iterable[Batch]) -> Support:
        """The entries by these calibration batches."""
        if self.settings.form == "lora":
            return self._all_low_rank()
        return select(self.base.model, batches, **self.settings.selection())

    def changed(self, changes: Mapping[str, Any], *, say: Say | None = None) -> Run:
        """The same run with other settings of how it trains: data and rows are shared, and the base if it may be."""
        other = Run(self._given.model_copy(update=dict(changes)), say or self.say)
        anew = {"settings"} | ({"base", "whole"} if LOADED_BY & changes.keys() else set())
        other.__dict__.update({name: it for name, it in self.__dict__.items() if name in _SHARED - anew})
        return other

    def forget_base(self) -> None:
        """Lets go of the model, so that another can be loaded; it is loaded again when it is next needed."""
        for name in ("base", "whole"):
            self.__dict__.pop(name, None)

    def _all_low_rank(self) -> Support:
        """LoRA in every linear that could carry entries."""
        model, rank, depth = self.base.model, self.settings.rank, self.settings.depth
        found = candidates(model) if depth is None else candidates_within(model, depth)
        linears = {name: it for name, it in found.items() if isinstance(it.kind, Features)}
        return Support(
            linears={},
            model_parameters=sum(parameter.numel() for parameter in model.parameters()),
            rule="lora",
            allocation="all",
            budget=f"rank {rank}",
            low_rank=dict.fromkeys(linears, rank),
            low_rank_parameters=rank * sum(sum(linear.shape) for linear in linears.values()),
        )

    def install(self, support: Support) -> nn.Module:
        """The base's model, which now trains what the support and the form say, and what trains whole."""
        s, model = self.settings, self.base.model
        if s.optimizer == "mezo":
            self.say(CAUTION)
        if s.base == "mapped":
            hold(model, s.base, self.say)
        if s.form == "lora":
            self._lora = PeftLora(model, support, self.whole, s.alpha, s.seed)
            return model
        rank = s.rank if s.form == "sparse_lora" else None
        return install(
            model, support, trainable=self.whole, step=s.step, form=s.form, rank=rank, alpha=s.alpha, seed=s.seed
        )

    def trained_parameters(self, model: nn.Module) -> int:
        """How many numbers the optimiser moves in an installed model, beside those that train whole."""
        return sum(p.numel() for p in model.parameters() if p.requires_grad) - self.whole_parameters

    def describe(self, support: Support, model: nn.Module) -> str:
        """What is about to be trained, for a line of text."""
        s = self.settings
        if s.form == "sparse":
            return str(support)
        factors = f"{self.trained_parameters(model):,} parameters of rank {s.rank}"
        if s.form == "lora":
            return f"LoRA, {factors} in {len(support.low_rank)} linears"
        return f"{support}, through {factors}"

    def extract(self, model: nn.Module) -> Delta:
        """What an installed model learnt."""
        return extract(model) if self._lora is None else self._lora.extract()

    def fuse(self, model: nn.Module) -> nn.Module:
        """The model with plain layers; what they hold is not said."""
        return fuse(model) if self._lora is None else self._lora.fuse()


LOADED_BY = {"dtype", "base"}
"""Settings that a base is loaded by: where they change, it is loaded anew."""

_SHARED = {"settings", "data", "base", "task", "max_length", "rows", "eval_rows", "collate", "whole"}
"""What a run works out once. The collator holds the tokenizer only, which is the same for every dtype."""


def cut_at(task: Task, base: Base, asked: int | None, say: Say) -> int:
    """Tokens that texts are cut at: what is asked for or the task says, or what the base can take; 0 for images."""
    if task.max_length is None:
        return 0
    wanted, possible = asked or task.max_length, base.longest
    if possible is None or wanted <= possible:
        return wanted
    say(f"texts are cut at {possible} tokens: the model has no more positions")
    return possible
