"""``tune_many``: from a base and the data of several tasks to one delta file with shared and own entries.

All models share the modules of the first one, so the base is in memory once. A run that is killed at any moment can be
resumed, to the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.delta.delta import Head, Provenance, check_name
from taskedge.delta.file import save
from taskedge.errors import InputError, TrainingDiverged
from taskedge.selection.select import select
from taskedge.selection.support import Support
from taskedge.training import checkpoint
from taskedge.training.many.cut_delta import cut_delta
from taskedge.training.many.gated_model import GatedModel
from taskedge.training.many.many_config import TuneManyConfig
from taskedge.training.many.many_folder import (
    check_identity,
    many_identity,
    remove_folder,
    run_folder,
    store_start,
    stored_supports,
)
from taskedge.training.many.train_many import ManyTrained, TaskData, num_steps, train_many
from taskedge.training.run import Run, prepare_run
from taskedge.training.run_provenance import larger_steps_text, training_provenance
from taskedge.training.tasks import Batch, Log
from taskedge.training.tune_config import TuneConfig
from taskedge.training.tune_folder import check_output, check_parent, check_was_killed, hold_locks, is_interrupted


@dataclass(frozen=True)
class ManyResult:
    """Outcome of a run over several tasks.

    Attributes:
        out: the file.
        file_bytes: its size.
        tasks: names of the tasks.
        shared_entries: entries that all tasks share.
        own_entries: entries of each task.
        own_rows: (rows with an open gate, rows) of each task.
        departures: block at which each task leaves the shared trunk; the number of blocks if it never does.
        cost: of one pass for all tasks, in passes of one task.
        closed_gates: block gates that were closed after their training to meet the target.
        steps: optimizer steps.
        losses: mean training loss of each task over the last phase.
        seconds: of the run.
    """

    out: Path
    file_bytes: int
    tasks: tuple[str, ...]
    shared_entries: int
    own_entries: tuple[int, ...]
    own_rows: tuple[tuple[int, int], ...]
    departures: tuple[int, ...]
    cost: float
    closed_gates: int
    steps: int
    losses: tuple[float, ...]
    seconds: float


def tune_many(
    data: Mapping[str, Path],
    config: TuneManyConfig,
    *,
    resume: bool = False,
    force: bool = False,
    log: Log = print,
    on_start: Callable[[int], Callable[[int], object]] = lambda _: lambda _: None,
) -> ManyResult:
    """Train several tasks at once over one base and write them to ``config.out``, which appears when it is complete.

    An interrupted run leaves the folder ``OUT.run``. With ``resume`` it continues, to the bytes of an uninterrupted run
    (on one thread). A finished run removes the folder.

    Args:
        data: training data by the task's name.
        config: the settings.
        resume: continue an interrupted run.
        force: replace the output file and an interrupted run.
        log: called with status lines.
        on_start: called with the number of steps; returns the callback that gets the finished steps since its last
            call.

    Raises:
        InputError: fewer than two tasks, or data, a base or settings that cannot be used; the output or an interrupted
            run exists, or there is none to resume; another process works on the same output.
        BudgetError: see :func:`taskedge.select`.
        TrainingDiverged: a loss is not a finite number.
    """
    _check_several(data)
    folder = run_folder(config)
    check_parent(config.out)
    with hold_locks(config.out, folder) as was_killed:
        check_output(config.out, folder, resume=resume, force=force)
        if resume and not is_interrupted(folder):
            check_was_killed(folder, was_killed, log)
        return _tune_many(data, config, folder, resume and is_interrupted(folder), log, on_start)


def plan_many(data: Mapping[str, Path], config: TuneManyConfig, *, log: Log = print) -> dict[str, Any]:
    """Return what :func:`tune_many` would train, as plain values. Nothing is trained, and no file is written.

    Raises:
        InputError, BudgetError: as :func:`tune_many` would.
    """
    _check_several(data)
    runs = {name: _prepared(name, path, config, log) for name, path in data.items()}
    shared, own = _selected_supports(runs, config, resumed_from=None)
    _freeze_but(runs)
    gated = GatedModel(next(iter(runs.values())).base.model, shared, own)
    tasks = [_task_data(name, run) for name, run in runs.items()]
    return {
        "model": config.model,
        "tasks": {
            name: {
                "task": run.task.name, "labels": list(run.task.labels), "rows": len(run.rows),
                "own_entries": support.num_entries, "head_parameters": run.num_full_parameters,
            }
            for (name, run), support in zip(runs.items(), own, strict=True)
        },
        "shared_entries": shared.num_entries,
        "blocks": len(gated.cost.names),
        "steps": num_steps(tasks, config.epochs, config.batch_size),
        "most_passes": len(runs) if config.target is None else min(config.target, len(runs)),
        "out": str(config.out),
    }  # fmt: skip


def _tune_many(
    data: Mapping[str, Path], config: TuneManyConfig, folder: Path, resume: bool, log: Log,
    on_start: Callable[[int], Callable[[int], object]],
) -> ManyResult:  # fmt: skip
    """Train in a folder that no other process uses. For the arguments see :func:`tune_many`."""
    begin = time.monotonic()
    runs = {name: _prepared(name, path, config, log) for name, path in data.items()}
    identity = many_identity(config, runs)
    if resume:
        check_identity(folder, identity)
    shared, own = _selected_supports(runs, config, resumed_from=folder if resume else None)
    first = next(iter(runs.values()))
    model = first.base.model
    if not resume:
        store_start(folder, identity, [shared, *own])
    log(f"shared: {shared}; each task may have {own[0].num_entries:,} entries of its own")
    for name, support in zip(("shared", *runs), (shared, *own), strict=True):
        if larger := larger_steps_text(support, "activation"):
            log(f"{name}: learning rate {config.lr:g}{larger}")
    _freeze_but(runs)
    gated = GatedModel(model, shared, own)
    tasks = [_task_data(name, run) for name, run in runs.items()]
    try:
        trained = train_many(
            gated, tasks, epochs=config.epochs, lr=config.lr, gate_lr=config.gate_lr,
            flops_weight=config.flops_weight, target=config.target, batch_size=config.batch_size, seed=config.seed,
            on_step=on_start(num_steps(tasks, config.epochs, config.batch_size)), folder=folder, resume=resume,
            checkpoint_every=config.checkpoint_every,
        )  # fmt: skip
    except TrainingDiverged:
        if checkpoint.latest(folder) is None:  # nothing to resume from
            remove_folder(folder)
        raise
    delta, cut = cut_delta(gated, _heads(runs, own, trained), Provenance())
    departures = gated.cost.departures_of_names([head.gated for head in delta.heads.values()])
    cost = gated.cost.of_departures(departures)
    gated.present.mode = "base"
    shared_parameters = _shared_parameters(first)
    delta = replace(
        delta,
        full_parameters=_values(model, shared_parameters),
        provenance=_provenance(runs, config, shared, trained.steps, cost),
    )
    for line in cut.lines(list(runs)):
        log(line)
    if trained.closed:
        log(f"{trained.closed} block gates were closed after their training, to meet the target {config.flops_target}")
    save(delta, config.out)
    remove_folder(folder)
    return ManyResult(
        out=config.out,
        file_bytes=config.out.stat().st_size,
        tasks=tuple(runs),
        shared_entries=delta.num_entries,
        own_entries=tuple(sum(map(len, head.gated.values())) for head in delta.heads.values()),
        own_rows=cut.own_rows,
        departures=tuple(departures),
        cost=cost,
        closed_gates=trained.closed,
        steps=trained.steps,
        losses=trained.losses,
        seconds=time.monotonic() - begin,
    )


def _check_several(data: Mapping[str, Path]) -> None:
    if len(data) < 2:
        raise InputError(f"{len(data)} tasks share nothing: give two or more with --task NAME=DATA")


def _selected_supports(
    runs: Mapping[str, Run], config: TuneManyConfig, *, resumed_from: Path | None
) -> tuple[Support, list[Support]]:
    """Load the base for all runs and return the shared support and that of each task, from a folder if given."""
    for run in runs.values():
        run.load()
        if resumed_from is None:
            run.check_forward()
    _share_base(runs)
    if resumed_from is not None:
        shared, *own = stored_supports(resumed_from, 1 + len(runs))
        return shared, own
    batches = [_without_labels(run, config.calibration) for run in runs.values()]
    shared = _selected(next(iter(runs.values())).base.model, batches, config, "shared")
    return shared, [
        _selected(run.base.model, [of_task], config, "task")
        for run, of_task in zip(runs.values(), batches, strict=True)
    ]


def _prepared(name: str, path: Path, config: TuneManyConfig, log: Log) -> Run:
    """Return the run of one task with its data read."""
    check_name("task", name)
    names = (
        "model",
        "rule",
        "calibration",
        "epochs",
        "lr",
        "batch_size",
        "max_length",
        "text",
        "label",
        "seed",
        "threads",
    )
    settings: dict[str, Any] = {key: getattr(config, key) for key in names if getattr(config, key) is not None}
    return prepare_run(
        TuneConfig(train=path, out=config.out, dtype="fp32", budget=config.shared_budget, **settings),
        lambda line: log(f"{name}: {line}"),
    )


def _share_base(runs: Mapping[str, Run]) -> None:
    """Give all models the modules of the first one, but for their heads."""
    (first_name, first), *others = runs.items()
    model: Any = first.base.model
    prefix = model.base_model_prefix
    for name, run in others:
        other: Any = run.base.model
        if other.base_model_prefix != prefix or type(getattr(other, prefix, None)) is not type(getattr(model, prefix)):
            raise InputError(
                f"tasks {first_name!r} and {name!r} need models of different classes ({type(model).__name__} and "
                f"{type(other).__name__}) that share no modules: tune them apart"
            )
        setattr(other, prefix, getattr(model, prefix))


def _without_labels(run: Run, count: int) -> list[Batch]:
    """Return calibration batches of a task; labels of another task would not fit the head."""
    batches = run.calibration_batches()
    return [
        {key: tensor for key, tensor in batch.items() if key != "labels"}
        for batch, _ in zip(batches, range(count), strict=False)
    ]


def _selected(model: nn.Module, batches: Sequence[Sequence[Batch]], config: TuneManyConfig, part: str) -> Support:
    every = [batch for of_task in zip(*batches, strict=False) for batch in of_task]
    budget = config.shared_budget if part == "shared" else config.task_budget
    return select(model, every, budget=budget, rule=config.rule, seed=config.seed + (part == "task"))


def _freeze_but(runs: Mapping[str, Run]) -> None:
    """Freeze everything but the fully trained parameters of each task."""
    for run in runs.values():
        run.base.model.requires_grad_(False)
    for run in runs.values():
        for name, parameter in run.base.model.named_parameters():
            if name in run.full_names:
                parameter.requires_grad_(True)


def _is_shared(run: Run, name: str) -> bool:
    model: Any = run.base.model
    return name.startswith(f"{model.base_model_prefix}.")


def _shared_parameters(run: Run) -> list[str]:
    """Return fully trained parameters inside the shared modules: those that the base's files do not have."""
    return [name for name in run.full_names if _is_shared(run, name)]


def _values(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().cpu().clone() for name in names}


def _task_data(name: str, run: Run) -> TaskData:
    parameters = dict(run.base.model.named_parameters())
    return TaskData(name, run.base.model, run.rows, run.collate, [parameters[key] for key in run.full_names])


def _heads(runs: Mapping[str, Run], own: Sequence[Support], trained: ManyTrained) -> dict[str, Head]:
    heads = {}
    for (name, run), support in zip(runs.items(), own, strict=True):
        names = [key for key in run.full_names if not _is_shared(run, key)]
        about = Provenance(
            rule=support.rule,
            allocation=support.allocation,
            budget=support.budget,
            base=str(run.config.model),
            base_parameters=support.model_parameters,
            task=run.task.name,
            labels=run.task.labels,
            training=training_provenance(run, support, trained.steps),
        )
        heads[name] = Head(_values(run.base.model, names), about)
    return heads


def _provenance(
    runs: Mapping[str, Run], config: TuneManyConfig, shared: Support, steps: int, cost: float
) -> Provenance:
    kinds = {run.task.name for run in runs.values()}
    about = {
        "tasks": list(runs), "shared_budget": config.shared_budget, "task_budget": config.task_budget,
        "flops_target": config.flops_target, "cost": round(cost, 6), "steps": steps,
    }  # fmt: skip
    return Provenance(
        rule=shared.rule,
        allocation=shared.allocation,
        budget=shared.budget,
        base=str(config.model),
        base_parameters=shared.model_parameters,
        task=kinds.pop() if len(kinds) == 1 else "",
        training={"tune_many": about},
    )
