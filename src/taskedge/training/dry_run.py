"""Dry run: what ``tune`` would train and what that costs. Reads the data, tries one step, and writes nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

from taskedge.backbone.coverage import coverage
from taskedge.backbone.layers import linears
from taskedge.forms.recompute import recomputing
from taskedge.training.memory.decide import profile_all_options
from taskedge.training.memory.mezo import Mezo, parameter_groups
from taskedge.training.run import Run, prepare_run
from taskedge.training.tasks import Log
from taskedge.training.tune_config import TuneConfig


def dry_run(config: TuneConfig, log: Log = print) -> dict[str, Any]:
    """Return what :func:`taskedge.training.tune.tune` would do, as plain values.

    The seconds are those of one real step on the first batch, times the number of steps. ``memory`` is the result of
    :func:`estimate`.

    Raises:
        InputError, BudgetError: as ``tune`` would.
    """
    run = prepare_run(config, log)
    decision = profile_all_options(run, log)
    if decision.chosen is not None:
        run = run.with_config(decision.chosen.changes)
    run.load()
    log(str(coverage(run.base.model)))
    config = run.config
    support = run.select()
    shapes = {name: linear.shape for name, linear in linears(run.base.model).items()}
    model = run.install(support).model
    steps = math.ceil(math.ceil(len(run.rows) / (config.batch_size * config.accumulate)) * config.epochs)
    seconds = _seconds_per_step(run, model)
    trained, element_size = run.num_trained_parameters(model), next(model.parameters()).element_size()
    optimizer_bytes = 8 * (trained + run.num_full_parameters) if config.optimizer == "adamw" else 0
    # a low-rank product keeps its full input, so columns tell nothing
    stored_columns = support.stored_columns if support.linears else None
    return {
        "model": config.model,
        "form": config.form,
        "lr": config.lr,
        "task": run.task.name,
        "labels": list(run.task.labels),
        "train_rows": len(run.rows),
        "eval_rows": len(run.data.eval) if run.data.eval else 0,
        "rule": support.rule,
        "allocation": support.allocation,
        "entries": support.num_entries,
        "share": support.share,
        "head_parameters": run.num_full_parameters,
        "head": run.base.head,
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
        "low_rank": [
            {"name": name, "shape": list(shapes[name]), "rank": rank} for name, rank in support.low_rank.items()
        ],
        "trained_parameters": trained,
        "stored_columns": stored_columns,
        "stored_bytes_per_token": None if stored_columns is None else element_size * stored_columns,
        "optimizer_bytes": optimizer_bytes,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds": seconds * steps,
        "memory": decision.as_json(),
    }


def estimate(config: TuneConfig, log: Log = print) -> dict[str, Any]:
    """Return the predicted memory and time of every configuration of this run, as plain values; train nothing.

    Raises:
        InputError, BudgetError: as ``tune`` would.
        DoesNotFit: there is a ``memory`` setting, and no configuration fits.
    """
    return profile_all_options(prepare_run(config, log), log).required().as_json()


def _seconds_per_step(run: Run, model: nn.Module) -> float:
    """Time a pass of the first rows, times the passes of a step."""
    config = run.config.trainer_config()
    batch = run.collate(run.rows[: config.rows_per_pass])
    mezo = Mezo(parameter_groups(model, run.full_names), lr=0.0) if config.optimizer == "mezo" else None
    with recomputing(model, config.recompute):
        return _seconds_per_pass(model, batch, mezo) * config.passes_per_step


def _seconds_per_pass(model: nn.Module, batch: dict[str, torch.Tensor], mezo: Mezo | None) -> float:
    """Time the second of two forward and backward passes; with MeZO, of two forward passes."""
    model.train(mezo is None)
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        if mezo is not None:
            mezo.probe(lambda: model(**batch).loss)
        else:
            model(**batch).loss.backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
    return seconds
