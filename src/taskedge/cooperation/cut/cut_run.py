"""A run over the cut, on the device: the run of ``tune`` with blocks that the cloud computes.

Data, task, loop, checkpoints, held-out loss and delta file are those of ``tune``. The support is chosen by the cloud.
An interrupted run leaves ``OUT.run`` and is resumed from its last checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskedge.backbone.evaluation import evaluation_mode, run_batch
from taskedge.backbone.loading import PRETRAINED_HEAD_TASKS
from taskedge.cooperation.cut.base_parts import PartsStore
from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.cut_settings import CutSettings, check_for_cut
from taskedge.cooperation.cut.cut_state import ChosenModules, read_chosen, read_support_message, write_chosen
from taskedge.cooperation.cut.device_end import Counted, DeviceEnd
from taskedge.cooperation.cut.device_modules import DeviceModules
from taskedge.cooperation.cut.hollow_model import HollowModel
from taskedge.cooperation.cut.noise import Exposure, NoiseSettings, OutgoingNoise
from taskedge.cooperation.cut.step_callbacks import CutSteps, KillAndRevive
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.delta.file import save
from taskedge.errors import InputError
from taskedge.forms.install import install
from taskedge.io.atomic import move_atomic, write_atomic
from taskedge.selection.select import parse_share
from taskedge.training.class_weights import weighted_loss
from taskedge.training.config import changes_text
from taskedge.training.guard import in_file
from taskedge.training.held_out import HeldOut
from taskedge.training.held_out_callback import held_out_callback, kept_values
from taskedge.training.run import Run, prepare_run
from taskedge.training.run_log import measure_and_hint
from taskedge.training.run_provenance import training_provenance, training_text
from taskedge.training.selection_settings import FORMS_OF_ENTRIES
from taskedge.training.tasks import Log, Measures
from taskedge.training.trainer import TrainResult, num_steps, train
from taskedge.training.tune_config import TuneConfig
from taskedge.training.tune_folder import (
    SETTINGS_FILE,
    check_output,
    check_parent,
    check_was_killed,
    hold_locks,
    is_interrupted,
    run_folder,
    run_identity,
)

_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class CutResult:
    """Outcome of a run over the cut.

    Attributes:
        out: the delta file.
        task: kind of task.
        entries, low_rank, head: numbers that trained: entries, low-rank products, fully trained parameters.
        steps: optimizer steps.
        train_loss: mean loss.
        seconds, seconds_per_step: wall clock.
        counted: passes and the numbers that crossed in them, by the closed form.
        measures: of the held-out data, if there are any.
    """

    out: Path
    task: str
    entries: int
    low_rank: int
    head: int
    steps: int
    train_loss: float
    seconds: float
    seconds_per_step: float
    counted: Counted
    measures: Measures | None


def train_over_cut(
    config: TuneConfig,
    settings: CutSettings,
    end: DeviceEnd,
    store: PartsStore,
    *,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    noise: OutgoingNoise | None = None,
    log: Log = print,
) -> CutResult:
    """Train a delta over the cut and write it to ``config.out``, which appears only when it is complete.

    Args:
        config: settings of ``tune``; ``model`` has no effect, since the cloud holds the base.
        settings: those of the cut.
        end: this device's end, on a link that serves it.
        store: where ``end`` keeps the files of the base.
        resume: continue an interrupted run.
        force: replace the output file and an interrupted run.
        progress: show a progress line on standard error.
        noise: what ``end`` does to messages that tell of the data.
        log: called with status lines.

    Raises:
        InputError: data or settings cannot be used, or not over the cut; see :func:`taskedge.training.tune.tune`.
        CutRefused: the cloud refused this device, or broke the protocol.
        CutEnded: the cloud is gone.
        TrainingDiverged: the loss is not a finite number.
    """
    check_for_cut(config, settings)
    if noise is not None:
        noise.follows(Exposure(1, 1, 1))  # an accountant that is missing is missed before anything leaves
    folder = run_folder(config)
    check_parent(config.out)
    with hold_locks(config.out, folder) as was_killed:
        check_output(config.out, folder, resume=resume, force=force)
        if resume and settings.noise:
            raise InputError("--resume: what the interrupted run sent is not on the account of --noise: use --force")
        if resume and not is_interrupted(folder):
            check_was_killed(folder, was_killed, log)
        try:
            return _train(config, settings, end, store, folder, noise, resume=resume, progress=progress, log=log)
        except Exception as error:
            end.refuse(error)
            raise


def _train(
    config: TuneConfig,
    settings: CutSettings,
    end: DeviceEnd,
    store: PartsStore,
    folder: Path,
    noise: OutgoingNoise | None,
    *,
    resume: bool,
    progress: bool,
    log: Log,
) -> CutResult:
    begin = time.monotonic()
    prepared = prepare_over_cut(config, settings, end, store, folder, resume=resume, log=log)
    run, hollow, chosen = prepared.run, prepared.hollow, prepared.chosen
    if noise is not None:
        planned = num_steps(len(run.rows), run.config.trainer_config())
        log(f"with this noise {noise.follows(_exposure(run, planned, Counted()))}")
    held_out = held_out_callback(run, folder)
    callbacks = [CutSteps(end), *([] if held_out is None else [held_out])]
    if settings.active_share < 1:
        callbacks.insert(1, KillAndRevive(end, settings.active_share, folder, config.checkpoint_every, log))
    with in_file(run.data.train.path), weighted_loss(hollow.model, run.class_weights()):
        trained = train(
            hollow.model,
            run.rows,
            run.collate,
            run.config.trainer_config(),
            folder,
            resume=resume,
            progress=progress,
            callbacks=callbacks,
            head=run.full_names,
        )
    delta = _extract(run, settings, chosen, hollow, trained, held_out, prepared.base_name)
    written = save(delta, folder / config.out.name, values=config.values)
    end.active = None
    measures = None
    if run.data.eval is not None:
        with in_file(run.data.eval.path):
            measures = measure_and_hint(run, hollow.model, run.config.trainer_config().rows_per_pass)
    if noise is not None:
        log(noise.spent(_exposure(run, trained.steps, end.counted)))
    end.done()
    move_atomic(written, config.out)
    (folder / SETTINGS_FILE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    return CutResult(
        out=config.out,
        task=run.task.name,
        entries=delta.num_entries,
        low_rank=delta.num_low_rank_parameters,
        head=run.num_full_parameters,
        steps=trained.steps,
        train_loss=trained.loss,
        seconds=time.monotonic() - begin,
        seconds_per_step=trained.seconds_per_step,
        counted=end.counted,
        measures=measures,
    )


@dataclass(frozen=True)
class Prepared:
    """A run over the cut before its first step.

    Attributes:
        run: settings, data and rows.
        hollow: the model, with its modules installed.
        chosen: the modules.
        base_name: of the cloud's base.
    """

    run: Run
    hollow: HollowModel
    chosen: ChosenModules
    base_name: str


def prepare_over_cut(
    config: TuneConfig,
    settings: CutSettings,
    end: DeviceEnd,
    store: PartsStore,
    folder: Path,
    *,
    resume: bool,
    log: Log,
) -> Prepared:
    """Join the cloud, read the data, load what the device holds, and have the modules chosen and installed.

    Args:
        config, settings, end, store, resume, log: see :func:`train_over_cut`.
        folder: of the run, made anew unless it is resumed.
    """
    facts = end.join()
    log(f"the cloud holds {facts.model}, {facts.layers} blocks of width {facts.width}")
    dtype = _DTYPES.get(facts.dtype)
    if dtype is None:
        raise CutRefused(f"the cloud computes in {facts.dtype}: start it with --dtype fp32 or bf16")
    run = prepare_run(config.model_copy(update={"model": str(store.path), "dtype": dtype}), log)
    if run.data.eval is not None and run.data.task.name in PRETRAINED_HEAD_TASKS:
        raise InputError(
            "--eval writes texts, for which all blocks must be here: leave it out, and measure the delta with "
            "`taskedge eval` where the base is"
        )
    run.load()
    hollow = HollowModel(run.base.model, getattr(torch, facts.dtype), facts.stack)
    hollow.returns_tuple = facts.returns_tuple
    identity = run_identity(run) | {"model": facts.model, "base_digest": facts.base, "dtype": facts.dtype}
    identity |= {f"cut_{name}": value for name, value in settings.model_dump(exclude={"patience"}).items()}
    chosen = _chosen(run, hollow, end, folder, identity, resume=resume)
    support = chosen.support
    install(
        hollow.model,
        support,
        trainable=run.full_names,
        step=config.step if config.form in FORMS_OF_ENTRIES else "plain",
        step_exponent=config.step_exponent,
        form="sparse" if config.form == "lora" else config.form,
        rank=config.rank if config.form == "sparse_lora" else None,
        alpha=config.alpha,
        seed=config.seed,
    )
    hollow.set_base_values(chosen.base_values)
    end.modules = DeviceModules(hollow.model, chosen.shared, hollow.cloud_name)
    hollow.run = end.run
    log(training_text(run, support, run.num_trained_parameters(hollow.model)))
    return Prepared(run, hollow, chosen, facts.model)


def outgoing_noise(settings: CutSettings) -> OutgoingNoise | None:
    """Return what is done to messages that tell of the data, by the settings; None for nothing."""
    if settings.noise is None or settings.clip_inputs is None or settings.clip_gradient is None:
        return None
    return OutgoingNoise(NoiseSettings(settings.clip_inputs, settings.clip_gradient, settings.noise, settings.delta))


def _exposure(run: Run, steps: int, counted: Counted) -> Exposure:
    config = run.config.trainer_config()
    epochs = math.ceil(steps * config.batch_size * config.accumulate / len(run.rows))
    return Exposure(
        passes_with_row=epochs + 1 + counted.repeated,  # one more: calibration
        training_passes=steps * config.passes_per_step + counted.repeated,
        rows_in_pass=config.rows_per_pass,
    )


def _chosen(
    run: Run, hollow: HollowModel, end: DeviceEnd, folder: Path, identity: Mapping[str, Any], *, resume: bool
) -> ChosenModules:
    """Return the modules of the interrupted run, or have the cloud choose them, and keep what a resumed run needs."""
    if resume and is_interrupted(folder):
        stored = json.loads((folder / SETTINGS_FILE).read_text())
        if changed := changes_text(stored, identity, {"base_digest": "another base in the cloud"}):
            raise InputError(
                f"the interrupted run had other settings: {changed}: resume it with those, or start anew with --force"
            )
        return read_chosen(folder)
    config = run.config
    hollow.run = _calibrating(end)
    batches = run.calibration_batches()
    run.log("the cloud chooses the modules, by calibration batches")
    with evaluation_mode(hollow.model), torch.no_grad():
        for number, batch in enumerate(batches):
            if config.form == "lora" and number:
                break  # one shows which linears share an input
            run_batch(hollow.model, {name: value for name, value in batch.items() if name != "labels"})
    if config.form == "lora":
        request: dict[str, Any] = {"rank": config.rank, "depth": config.depth}
    else:
        request = config.select_kwargs()
        budget = request.pop("budget")
        if budget is not None:
            request["entries"] = round(parse_share(budget) * hollow.num_parameters)
    chosen = read_support_message(end.choose(request), hollow, rank=config.rank)
    if "entries" in request:
        chosen = replace(chosen, support=replace(chosen.support, budget=str(budget)))
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}): name another file with --out") from None
    write_chosen(chosen, folder)
    write_atomic(folder / SETTINGS_FILE, json.dumps(identity, indent=1).encode())
    return chosen


def _calibrating(end: DeviceEnd) -> Callable[[Tensor, Tensor], Tensor]:
    def run(hidden: Tensor, mask: Tensor) -> Tensor:
        end.calibrate(hidden, mask)
        return hidden

    return run


def _extract(
    run: Run,
    settings: CutSettings,
    chosen: ChosenModules,
    hollow: HollowModel,
    trained: TrainResult,
    held_out: HeldOut | None,
    base: str,
) -> Delta:
    """Return what was learned, bound to the cloud's base, with its provenance."""
    training = training_provenance(run, chosen.support, trained.steps)
    training |= {"coding": settings.coding, "active_share": settings.active_share}
    training |= kept_values(run, held_out, hollow.model)
    delta = extract(hollow.model)
    products = {name: replace(product, base_digest=chosen.digests[name]) for name, product in delta.low_rank.items()}
    return replace(delta, low_rank=products).with_provenance(
        base=base, task=run.task.name, labels=run.task.labels, training=training | delta.provenance.training
    )
