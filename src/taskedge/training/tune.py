"""``tune``: from a base and data to a delta file, resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.storage.memory_map import check_unchanged
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta
from taskedge.delta.file import load
from taskedge.errors import DoesNotFit, InputError, TrainingDiverged
from taskedge.io.atomic import write_aside
from taskedge.profiling.byte_size import show_bytes
from taskedge.profiling.process_memory import TIGHT, lifetime_peak_bytes, peak_bytes, reset_peak, return_freed_memory
from taskedge.selection.support import Support
from taskedge.selection.support_file import load_support, save_support
from taskedge.training import checkpoint
from taskedge.training.memory.decide import within
from taskedge.training.memory.memory_report import choice_text
from taskedge.training.memory.release import Trim
from taskedge.training.run import Run
from taskedge.training.tasks import Measures, Say
from taskedge.training.trainer import FitResult, fit
from taskedge.training.tune_config import TuneSettings


@dataclass(frozen=True)
class TuneResult:
    """What a run of :func:`tune` made."""

    out: Path
    task: str
    form: str
    lr: float
    entries: int
    share: float
    low_rank: int
    """Numbers in the low-rank products of the file, counted apart."""
    trained: int
    """Numbers that the optimiser moved, the head's not counted: the entries, or the factors that they come from."""
    head: int
    """Parameters trained whole, counted apart."""
    steps: int
    train_loss: float
    seconds: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    """The same of the processor: less than that of the wall's clock where others use the machine, too."""
    peak_memory: int
    """Bytes: the largest resident size of the process so far (on a GPU: what torch reserved there)."""
    run_peak_memory: int
    """The same since the memory was predicted, where it was: that of the run without the prediction."""
    predicted: dict[str, Any] | None
    """With a memory budget: what was predicted of the way that was chosen (``Cost.as_json``)."""
    file_bytes: int
    quality: Measures | None
    """What the task measures, of the written file on the ``eval`` data, if there is any."""


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
    folder = run_folder(settings)
    _may_write(settings.out, folder, resume=resume, force=force)
    run, estimate = _within_budget(Run(settings, say), folder, resume=resume)
    support = _start(run, folder, estimate, resume=resume)
    model = run.install(support)
    trained = run.trained_parameters(model)
    whole = f"a head of {run.whole_parameters:,} parameters" if run.whole else "nothing"
    say(
        f"training {run.describe(support, model)}; whole: {whole}; learning rate {settings.lr:g}, "
        f"batches of {run.settings.batch_size}"
    )
    try:
        done = fit(
            model,
            run.rows,
            run.collate,
            run.settings.fit(),
            folder,
            resume=resume,
            progress=progress,
            callbacks=[] if estimate is None else [Trim()],
            tensorboard=settings.tensorboard,
            head=run.whole,
        )
    except TrainingDiverged:
        if checkpoint.latest(folder) is None:  # nothing that is worth keeping
            shutil.rmtree(folder, ignore_errors=True)
        raise
    delta, measured = _finish(run, model, done, folder)
    return TuneResult(
        out=settings.out,
        task=run.task.name,
        form=settings.form,
        lr=settings.lr,
        entries=support.entries,
        share=support.share,
        low_rank=delta.low_rank_parameters,
        trained=trained,
        head=run.whole_parameters,
        steps=done.steps,
        train_loss=done.loss,
        seconds=time.monotonic() - started,
        seconds_per_step=done.seconds_per_step,
        cpu_seconds_per_step=done.cpu_seconds_per_step,
        peak_memory=lifetime_peak_bytes(next(model.parameters()).device),
        run_peak_memory=peak_bytes(next(model.parameters()).device),
        predicted=estimate,
        file_bytes=settings.out.stat().st_size,
        quality=measured,
    )


def run_folder(settings: TuneSettings) -> Path:
    """Where a run keeps what it needs to go on: beside its output."""
    return settings.out.with_name(f"{settings.out.name}.run")


def interrupted(folder: Path) -> bool:
    """Whether the folder holds a run that can go on."""
    return (folder / _SETTINGS).exists()


def as_json(result: TuneResult) -> dict[str, Any]:
    """The result as plain values."""
    return asdict(result) | {"out": str(result.out)}


_SETTINGS, _SUPPORT, _LOGS, _ESTIMATE = "settings.json", "support.safetensors", "runs", "memory.json"


def _may_write(out: Path, folder: Path, *, resume: bool, force: bool) -> None:
    """Makes sure that the run may write where it will, before anything costly; with ``force``, makes room."""
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}: make it, or name another with --out")
    if out.is_dir():
        raise InputError(f"{out} is a folder: name a file with --out")
    if out.exists() and not force and not (resume and interrupted(folder)):
        raise InputError(f"{out} exists: name another file with --out, or replace it with --force")
    if interrupted(folder) and not (resume or force):
        raise InputError(f"{folder} holds an interrupted run: go on with --resume, or start anew with --force")


def _within_budget(run: Run, folder: Path, *, resume: bool) -> tuple[Run, dict[str, Any] | None]:
    """The run on the way that its memory budget leaves, and what that was predicted to cost; as it is without one.

    A resumed run goes on the way on which it began.
    """
    settings = run.settings
    if settings.memory_bytes is None:
        return run, None
    return_freed_memory(TIGHT)
    if resume and (folder / _ESTIMATE).exists():
        before: dict[str, Any] = json.loads((folder / _ESTIMATE).read_text())
        if before["needed"] > settings.memory_bytes:
            raise DoesNotFit(
                before["needed"],
                f"--memory {settings.memory}: the interrupted run needs {show_bytes(before['needed'])}: resume it with "
                "as much, or start anew with --force",
            )
        return run.changed(before["changes"]), before
    run, estimate = within(run, run.say)
    assert estimate.chosen is not None
    run.say(choice_text(estimate.as_json()))
    reset_peak(torch.device("cpu"))  # of the run alone, which is what was predicted
    return run, estimate.chosen.as_json()


def _start(run: Run, folder: Path, estimate: dict[str, Any] | None, *, resume: bool) -> Support:
    """The support: that of the interrupted run, or a new one; what a resumed run needs is on the disk then."""
    identity = _identity(run)
    if resume and interrupted(folder):
        before = json.loads((folder / _SETTINGS).read_text())
        changed = [key for key in identity if before.get(key) != identity[key]]
        if changed:
            raise InputError(
                "the interrupted run had other settings: "
                + ", ".join(f"{key}={before.get(key)!r} (now {identity[key]!r})" for key in changed)
                + ": resume it with those, or start anew with --force"
            )
        return load_support(folder / _SUPPORT)
    support = run.select()
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that --force replaces, or that was killed as it began
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): name another file with --out") from None
    save_support(support, folder / _SUPPORT)
    if estimate is not None:
        write_aside(folder / _ESTIMATE, json.dumps(estimate).encode())
    write_aside(folder / _SETTINGS, json.dumps(identity, indent=1).encode())
    return support


def _identity(run: Run) -> dict[str, Any]:
    """What must be the same for a run to go on: its data, and all settings but what it writes and how it logs."""
    apart = {"out", "tensorboard", "eval", "checkpoint_every", "values", "memory", "allow"}
    values: dict[str, Any] = json.loads(run.settings.model_dump_json(exclude=apart))
    rows = json.dumps([run.data.task.name, run.data.task.identity(run.data.train)])
    return values | {"data_digest": hashlib.blake2b(rows.encode(), digest_size=8).hexdigest()}


def _finish(run: Run, model: nn.Module, done: FitResult, folder: Path) -> tuple[Delta, Measures | None]:
    """Writes the delta, measures what was written, and only then puts it under its name and removes the folder."""
    settings = run.settings
    check_unchanged(model)
    delta = run.extract(model).with_provenance(
        base=settings.model,
        task=run.task.name,
        labels=run.task.labels,
        training=_training(run, done.steps),
    )
    written = delta.save(folder / settings.out.name, values=settings.values)
    measured = None
    if run.data.eval is not None:
        apply(run.fuse(model), load(written), force=True)
        measured = run.task.evaluate(model, run.base, run.eval_rows, settings.fit().passes[0], lambda _: None)
    written.replace(settings.out)
    (folder / _SETTINGS).unlink()  # first: what is left when this is cut short is no run to go on with
    logs = folder / _LOGS
    if settings.tensorboard and logs.exists():
        logs.replace(settings.out.with_name(f"{settings.out.name}.logs"))
    shutil.rmtree(folder, ignore_errors=True)
    return delta, measured


def _training(run: Run, steps: int) -> dict[str, Any]:
    """How the delta was trained, for its provenance."""
    kept = ["epochs", "lr", "batch_size", "accumulate", "seed", "step", "dtype"]
    if run.settings.form != "sparse":
        kept = ["form", "rank", "alpha", *(name for name in kept if name != "step" or run.settings.form != "lora")]
    kept += [name for name in ("depth", "rotate", "optimizer", "base") if name in run.settings.model_fields_set]
    about = {name: getattr(run.settings, name) for name in kept} | run.data.columns.named | run.task.about()
    if run.max_length:
        about["max_length"] = run.max_length
    return about | {"steps": steps, "rows": len(run.rows)}
