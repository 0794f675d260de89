"""``tune``: from a base and labelled texts to a delta file, resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.linears import head_parameters
from taskedge.backbone.load import Base, load_classifier
from taskedge.delta.extract import extract
from taskedge.errors import InputError
from taskedge.files import write_aside
from taskedge.forms.install import install
from taskedge.selection.select import select
from taskedge.selection.support import Support
from taskedge.selection.support_file import load_support, save_support
from taskedge.training.fit import fit
from taskedge.training.settings import TuneSettings
from taskedge.training.table import Table, check_labels, label_set, read_table
from taskedge.training.text import Quality, Row, collator, encode, predict, quality

Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """The labelled texts of a run, and their classes."""

    labels: list[str]
    train: Table
    eval: Table | None


@dataclass(frozen=True)
class TuneResult:
    """What a run of :func:`tune` made."""

    out: Path
    entries: int
    share: float
    head: int
    """Parameters trained whole, counted apart."""
    steps: int
    train_loss: float
    seconds: float
    peak_memory: int
    """Bytes: the largest resident size of the process so far."""
    file_bytes: int
    quality: Quality | None
    """On the ``eval`` file, if one was given."""


class Run:
    """One run: its settings, data, base and support, each made when it is first needed."""

    def __init__(self, settings: TuneSettings, say: Say) -> None:
        self.settings, self.say = settings, say
        self.folder = settings.out.with_name(f"{settings.out.name}.run")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    @cached_property
    def data(self) -> Data:
        """Both files, read and checked."""
        s = self.settings
        train = read_table(s.train, s.text, s.label)
        labels = label_set(train)
        held_out = read_table(s.eval, s.text, s.label) if s.eval else None
        if held_out is not None:
            check_labels(held_out, labels)
        return Data(labels, train, held_out)

    @cached_property
    def base(self) -> Base:
        """The base with a head for the task; a fresh head comes from the seed."""
        from transformers import set_seed

        self.say(f"loading {self.settings.model}")
        set_seed(self.settings.seed)
        return load_classifier(self.settings.model, self.data.labels)

    @cached_property
    def rows(self) -> list[Row]:
        """The training rows, tokenised."""
        return self.encode(self.data.train)

    def encode(self, table: Table) -> list[Row]:
        assert table.labels is not None
        place = {label: index for index, label in enumerate(self.data.labels)}
        truth = [place[label] for label in table.labels]
        return encode(self.base.tokenizer, table.texts, truth, self.settings.max_length)

    @cached_property
    def whole(self) -> list[str]:
        """Parameters that train whole: the head, and whatever else the base's files do not hold."""
        return list(dict.fromkeys([*head_parameters(self.base.model), *self.base.fresh]))

    @cached_property
    def support(self) -> Support:
        """Selected on the first batches of the data in a seeded order; read back where the run is resumed."""
        stored = self.folder / "support.safetensors"
        if stored.exists():
            return load_support(stored)
        s = self.settings
        self.say(f"selecting weights by rule {s.rule!r} on {s.calibration} batches")
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(s.seed)).tolist()
        collate = collator(self.base.tokenizer)
        batches = [
            collate([self.rows[place] for place in order[start : start + s.batch_size]])
            for start in range(0, min(len(order), s.calibration * s.batch_size), s.batch_size)
        ]
        return select(
            self.base.model,
            batches,
            budget=s.budget if s.per_neuron is None else None,
            per_neuron=s.per_neuron,
            rule=s.rule,
            allocation=s.allocation,
            max_columns=s.max_columns,
            seed=s.seed,
        )

    def install(self) -> nn.Module:
        return install(self.base.model, self.support, trainable=self.whole, step=self.settings.step)


def tune(
    settings: TuneSettings, *, resume: bool = False, force: bool = False, progress: bool = True, say: Say = print
) -> TuneResult:
    """Trains a delta and writes it to ``settings.out``, which appears only when it is whole.

    What an interrupted run leaves stays in ``OUT.run`` and goes on with ``resume``, to values that are bit-identical
    to those of an uninterrupted run (one thread); a finished run removes it.

    Raises:
        InputError: data, model or settings that cannot be used; the output file exists (and not ``force``); an
            interrupted run is there (and neither ``resume`` nor ``force``).
        BudgetError: see :func:`taskedge.select`.
        TrainingDiverged: the loss is not a finite number; the last good checkpoint is kept.
    """
    started = time.monotonic()
    run = Run(settings, say)
    _open_folder(run, resume=resume, force=force)
    model = _start(run)
    collate = collator(run.base.tokenizer)
    say(f"training {run.support} and a head of {_count(model, run.whole):,} parameters")
    done = fit(
        model,
        run.rows,
        collate,
        settings.fit(),
        run.folder,
        resume=resume,
        progress=progress,
        tensorboard=settings.tensorboard,
    )
    measured = None
    if run.data.eval is not None:
        rows = run.encode(run.data.eval)
        measured = quality(predict(model, rows, collate, settings.batch_size), [row["labels"] for row in rows])
    delta = extract(model).with_provenance(
        base=settings.model,
        task="text-classification",
        labels=tuple(run.data.labels),
        training=_provenance(settings, done.steps, len(run.rows)),
    )
    delta.save(settings.out, values=settings.values)
    if not settings.tensorboard:
        shutil.rmtree(run.folder, ignore_errors=True)
    return TuneResult(
        out=settings.out,
        entries=delta.entries,
        share=run.support.share,
        head=delta.whole_parameters,
        steps=done.steps,
        train_loss=done.loss,
        seconds=time.monotonic() - started,
        peak_memory=peak_memory(),
        file_bytes=settings.out.stat().st_size,
        quality=measured,
    )


def plan(settings: TuneSettings, say: Say = print) -> dict[str, Any]:
    """What :func:`tune` would train and what that will cost, as plain values; writes nothing.

    The seconds are those of one real step on the first batch, times the number of steps.
    """
    run = Run(settings, say)
    support, rows = run.support, run.rows
    model = run.install()
    steps = -(-len(rows) // (settings.batch_size * settings.accumulate)) * settings.epochs
    seconds = _one_step(model, collator(run.base.tokenizer)(rows[: settings.batch_size])) * settings.accumulate
    stored: dict[str, set[int]] = {}
    for linear in support.linears.values():
        stored.setdefault(linear.reads, set()).update(linear.columns.tolist())
    head = _count(model, run.whole)
    return {
        "model": settings.model,
        "task": "text-classification",
        "labels": run.data.labels,
        "train_rows": len(rows),
        "eval_rows": len(run.data.eval) if run.data.eval else 0,
        "rule": support.rule,
        "allocation": support.allocation,
        "entries": support.entries,
        "share": support.share,
        "head_parameters": head,
        "model_parameters": support.model_parameters,
        "linears": [
            {
                "name": name,
                "shape": list(linear.shape),
                "entries": len(linear),
                "distinct_columns": len(linear.distinct_columns),
            }
            for name, linear in support.linears.items()
        ],
        "stored_columns": sum(map(len, stored.values())),
        "stored_bytes_per_token": 4 * sum(map(len, stored.values())),
        "optimizer_bytes": 8 * (support.entries + head),
        "steps": round(steps),
        "seconds_per_step": seconds,
        "seconds": seconds * steps,
    }


def peak_memory() -> int:
    """Bytes: the largest resident size of this process so far."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _open_folder(run: Run, *, resume: bool, force: bool) -> None:
    """Makes sure that the run may write where it will, before anything costly."""
    out, folder = run.settings.out, run.folder
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}: make it, or name another with --out")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file with --out")
    if out.exists() and not force and not (resume and folder.exists()):
        raise InputError(f"{out} exists: name another file with --out, or replace it with --force")
    if folder.exists() and not resume:
        if not force:
            raise InputError(f"{folder} holds an interrupted run: go on with --resume, or start anew with --force")
        shutil.rmtree(folder)


def _start(run: Run) -> nn.Module:
    """The model with its support installed; what a resumed run needs is on the disk when this returns."""
    stored = run.folder / "settings.json"
    identity = _identity(run.settings)
    if stored.exists():
        before = json.loads(stored.read_text())
        changed = [key for key in identity if before.get(key) != identity[key]]
        if changed:
            raise InputError(
                "the interrupted run had other settings: "
                + ", ".join(f"{key}={before.get(key)!r} (now {identity[key]!r})" for key in changed)
                + ": resume it with those, or start anew with --force"
            )
    elif run.folder.exists():  # killed before it had begun
        shutil.rmtree(run.folder)
    support = run.support
    model = run.install()
    if not stored.exists():
        run.folder.mkdir()
        save_support(support, run.folder / "support.safetensors")
        write_aside(stored, json.dumps(identity, indent=1).encode())
    return model


def _identity(settings: TuneSettings) -> dict[str, Any]:
    """What must be the same for a run to go on: all settings but where it writes and how it logs."""
    apart = {"out", "tensorboard", "eval", "checkpoint_every", "values"}
    values: dict[str, Any] = json.loads(settings.model_dump_json(exclude=apart))
    with settings.train.open("rb") as file:
        return values | {"train_digest": hashlib.file_digest(file, "blake2b").hexdigest()[:32]}


def _provenance(settings: TuneSettings, steps: int, rows: int) -> dict[str, Any]:
    kept = ("epochs", "lr", "batch_size", "accumulate", "max_length", "seed", "step", "text", "label")
    return {name: getattr(settings, name) for name in kept} | {"steps": steps, "rows": rows}


def _count(model: nn.Module, names: list[str]) -> int:
    parameters = dict(model.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _one_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one forward and backward pass, the second of two."""
    model.train()
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        model(**batch).loss.backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
    return seconds


def as_json(result: TuneResult) -> dict[str, Any]:
    """The result as plain values."""
    return asdict(result) | {"out": str(result.out)}
