"""``tune``: from a base and data to a delta file, resumable at any moment.

A run in ten steps:

1. ``cli/tune.py`` collects the flags; ``training/config.py`` makes a ``TuneConfig`` of them and a settings file.
2. :func:`tune` checks that the output can be written, and whether the folder beside it holds an interrupted run.
3. ``training/run.py`` reads the data: ``data/infer_task.py`` infers the task, a module of ``tasks/`` reads the rows.
4. With a memory budget, ``memory/decide.py`` measures and chooses the settings to run with.
5. ``Run.load`` loads the base (``backbone/loading.py``) and encodes the rows.
6. ``Run.select`` selects the weights to train (``selection/select.py``); the support is saved in the folder.
7. ``Run.install`` makes them trainable in the base (``forms/install.py``).
8. ``training/trainer.py`` trains them, with checkpoints (``training/checkpoint.py``) in the folder.
9. ``delta/extract.py`` extracts the delta; ``delta/file.py`` writes it into the folder.
10. The written file is loaded, applied to the plain base and evaluated; then it gets its name and the folder goes.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from taskedge.backbone.coverage import log_coverage
from taskedge.backbone.storage.memory_map import check_unchanged
from taskedge.delta.apply import apply
from taskedge.delta.delta import Delta
from taskedge.delta.file import load, save
from taskedge.errors import DoesNotFit, InputError, TrainingDiverged
from taskedge.io.atomic import move_atomic, write_atomic
from taskedge.profiling.byte_size import format_bytes
from taskedge.profiling.process_memory import (
    TIGHT_THRESHOLD_BYTES,
    lifetime_peak_bytes,
    peak_bytes,
    reset_peak,
    return_freed_memory,
)
from taskedge.selection.support import Support, load_support, save_support
from taskedge.training import checkpoint
from taskedge.training.callbacks import TENSORBOARD_FOLDER
from taskedge.training.class_weights import weighted_loss
from taskedge.training.find_support import find_in_steps
from taskedge.training.form_callbacks import form_callbacks, open_share
from taskedge.training.guard import explained, in_file
from taskedge.training.held_out import HeldOut
from taskedge.training.held_out_callback import held_out_callback, kept_values
from taskedge.training.memory.decide import choose_within_budget
from taskedge.training.memory.headroom import ReleaseFreedMemory
from taskedge.training.memory.memory_report import decision_text
from taskedge.training.run import Run, prepare_run
from taskedge.training.run_log import measure_and_hint, write_run_log
from taskedge.training.run_provenance import bf16_hint, training_provenance, training_text
from taskedge.training.tasks import Log, Measures
from taskedge.training.thread_watch import ThreadWatch
from taskedge.training.trainable_model import TrainableModel
from taskedge.training.trainer import TrainResult, bf16_forward, train
from taskedge.training.tune_config import TuneConfig
from taskedge.training.tune_folder import (
    MEMORY_FILE,
    SETTINGS_FILE,
    SUPPORT_FILE,
    check_output,
    check_parent,
    check_was_killed,
    current_names,
    hold_locks,
    identity_changes,
    is_interrupted,
    run_folder,
    run_identity,
)
from taskedge.training.tune_result import TuneResult


def tune(
    config: TuneConfig, *, resume: bool = False, force: bool = False, progress: bool = True, log: Log = print
) -> TuneResult:
    """Train a delta and write it to ``config.out``, which appears only when it is complete.

    An interrupted run leaves the folder ``OUT.run``. With ``resume`` it continues, to values that are bit-identical to
    those of an uninterrupted run (on one thread). A finished run removes the folder.

    Args:
        config: the settings.
        resume: continue an interrupted run.
        force: replace the output file and an interrupted run.
        progress: show a progress line on standard error.
        log: called with status lines.

    Raises:
        InputError: data, model or settings cannot be used; the output file exists (and not ``force``); an interrupted
            run exists (and neither ``resume`` nor ``force``); there is none (and ``resume``); another process works on
            the same output.
        BudgetError: see :func:`taskedge.select`.
        DoesNotFit: no configuration fits the memory budget.
        TrainingDiverged: the loss is not a finite number; the last good checkpoint is kept.
    """
    folder = run_folder(config)
    check_parent(config.out)
    with hold_locks(config.out, folder) as was_killed:
        check_output(config.out, folder, resume=resume, force=force)
        if resume and not is_interrupted(folder):
            check_was_killed(folder, was_killed, log)
        return _tune(config, folder, resume=resume, progress=progress, log=log)


def _tune(config: TuneConfig, folder: Path, *, resume: bool, progress: bool, log: Log) -> TuneResult:
    """Train a delta in a folder that no other process uses. For the arguments see :func:`tune`."""
    begin = time.monotonic()
    run, predicted = _fit_memory_budget(prepare_run(config, log), folder, resume=resume)
    support = _resume_or_select(run, folder, predicted, resume=resume, progress=progress)
    installed = run.install(support)
    num_trained = run.num_trained_parameters(installed.model)
    log(training_text(run, support, num_trained))
    if hint := bf16_hint(run.config):
        log(hint)
    held_out = held_out_callback(run, folder)
    try:
        with in_file(run.data.train.path), weighted_loss(installed.model, run.class_weights()):
            trained = train(
                installed.model,
                run.rows,
                run.collate,
                run.config.trainer_config(),
                folder,
                resume=resume,
                progress=progress,
                callbacks=[
                    *([] if predicted is None else [ReleaseFreedMemory()]),
                    *form_callbacks(config, log),
                    *([] if held_out is None else [held_out]),
                    *([] if config.threads is not None else [ThreadWatch(run.log)]),
                ],
                tensorboard=config.tensorboard,
                head=run.full_names,
            )
    except TrainingDiverged:
        if checkpoint.latest(folder) is None:  # nothing to resume from
            shutil.rmtree(folder, ignore_errors=True)
        raise
    delta = _extract(run, support, installed, trained, held_out)
    measures = _write_and_evaluate(run, installed, delta, folder)
    device = next(installed.model.parameters()).device
    result = TuneResult(
        out=config.out,
        task=run.task.name,
        form=config.form,
        lr=config.lr,
        entries=delta.num_entries,
        share=open_share(delta, support),
        low_rank=delta.num_low_rank_parameters,
        trained=num_trained,
        head=run.num_full_parameters,
        steps=trained.steps,
        train_loss=trained.loss,
        seconds=time.monotonic() - begin,
        seconds_per_step=trained.seconds_per_step,
        cpu_seconds_per_step=trained.cpu_seconds_per_step,
        peak_memory=lifetime_peak_bytes(device),
        run_peak_memory=peak_bytes(device),
        predicted=predicted,
        file_bytes=config.out.stat().st_size,
        quality=measures,
    )
    write_run_log(run, result, trained.log)
    return result


def as_json(result: TuneResult) -> dict[str, Any]:
    """Return the result as plain values."""
    return asdict(result) | {"out": str(result.out)}


def _fit_memory_budget(run: Run, folder: Path, *, resume: bool) -> tuple[Run, dict[str, Any] | None]:
    """Return the run in a configuration that fits its memory budget, and the prediction for that.

    Without a budget the run is unchanged. A resumed run keeps the configuration in which it began.
    """
    config = run.config
    if config.memory_bytes is None:
        return run, None
    return_freed_memory(TIGHT_THRESHOLD_BYTES)
    if resume and (folder / MEMORY_FILE).exists():
        predicted: dict[str, Any] = json.loads((folder / MEMORY_FILE).read_text())
        if predicted["needed"] > config.memory_bytes:
            needed = format_bytes(predicted["needed"])
            raise DoesNotFit(
                predicted["needed"],
                f"--memory {config.memory}: the interrupted run needs {needed}: resume it with as much, or start anew "
                "with --force",
            )
        return run.with_config(current_names(predicted["changes"])), predicted
    with explained(run.check_forward):
        run, decision = choose_within_budget(run, run.log)
    assert decision.chosen is not None
    run.log(decision_text(decision.as_json()))
    reset_peak(torch.device("cpu"))  # the prediction is about the run alone
    return run, decision.chosen.as_json()


def _resume_or_select(
    run: Run, folder: Path, predicted: dict[str, Any] | None, *, resume: bool, progress: bool
) -> Support:
    """Return the support of the interrupted run, or select one and save all that a resumed run needs."""
    identity = run_identity(run)
    if resume and is_interrupted(folder):
        changed = identity_changes(folder, identity)
        if changed:
            raise InputError(
                f"the interrupted run had other settings: {changed}: resume it with those, or start anew with --force"
            )
        run.load()
        if checkpoint.latest(folder) is None:  # a checkpoint has the trained head
            run.warm_head()
        if run.config.support != "rule" and not (folder / SUPPORT_FILE).exists():
            return find_in_steps(run, folder, SUPPORT_FILE, resume=True, progress=progress)
        return load_support(folder / SUPPORT_FILE)
    run.load()
    log_coverage(run.base.model, run.log)
    run.check_forward()
    run.warm_head()
    by_rule = run.config.support == "rule"  # gates train for many steps, which a resumed run need not repeat
    support = run.select() if by_rule else None
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that --force replaces, or that was killed as it began
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): name another file with --out") from None
    if support is not None:
        save_support(support, folder / SUPPORT_FILE)
    if predicted is not None:
        write_atomic(folder / MEMORY_FILE, json.dumps(predicted).encode())
    write_atomic(folder / SETTINGS_FILE, json.dumps(identity, indent=1).encode())
    return support or find_in_steps(run, folder, SUPPORT_FILE, progress=progress)


def _extract(
    run: Run, support: Support, installed: TrainableModel, trained: TrainResult, held_out: HeldOut | None
) -> Delta:
    """Return what was learned, with its provenance: of the last step, or of the best evaluation."""
    check_unchanged(installed.model)
    training = training_provenance(run, support, trained.steps)
    training |= kept_values(run, held_out, installed.model)
    delta = installed.extract()
    return delta.with_provenance(
        base=run.config.model,
        task=run.task.name,
        labels=run.task.labels,
        training=training | delta.provenance.training,
    )


def _write_and_evaluate(run: Run, installed: TrainableModel, delta: Delta, folder: Path) -> Measures | None:
    """Write the delta into the folder, measure the written file, then give it its name and remove the folder."""
    config = run.config
    written = save(delta, folder / config.out.name, values=config.values)
    measures = None
    if run.data.eval is not None:
        model = installed.fuse()
        apply(model, load(written), force=True)
        batch_size = config.trainer_config().rows_per_pass
        with bf16_forward(model) if config.bf16 else nullcontext(), in_file(run.data.eval.path):
            measures = measure_and_hint(run, model, batch_size)
    move_atomic(written, config.out)
    (folder / SETTINGS_FILE).unlink()  # first: a folder without it is no run to resume, if this is cut short
    logs = folder / TENSORBOARD_FOLDER
    if config.tensorboard and logs.exists():
        logs.replace(config.out.with_name(f"{config.out.name}.logs"))
    shutil.rmtree(folder, ignore_errors=True)
    return measures
