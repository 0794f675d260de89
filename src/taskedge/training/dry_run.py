"""``plan``: what ``tune`` would train and what that will cost. Reads, tries one step, and writes nothing."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

from taskedge.backbone.linears import linears
from taskedge.forms.recompute import recomputing
from taskedge.training.memory.decide import ladder_of
from taskedge.training.memory.mezo import Mezo, parted
from taskedge.training.run import Run
from taskedge.training.tasks import Say
from taskedge.training.tune_config import TuneSettings


def plan(settings: TuneSettings, say: Say = print) -> dict[str, Any]:
    """What :func:`taskedge.training.tune.tune` would do, as plain values.

    The seconds are those of one real step on the first batch, times the number of steps. ``memory`` is what
    :func:`estimate` says.

    Raises:
        InputError, BudgetError: as ``tune`` would.
    """
    run = Run(settings, say)
    ladder = ladder_of(run, say)
    if ladder.chosen is not None:
        run = run.changed(ladder.chosen.changes)
    settings = run.settings
    support = run.select()
    shapes = {name: linear.shape for name, linear in linears(run.base.model).items()}
    model = run.install(support)
    steps = math.ceil(math.ceil(len(run.rows) / (settings.batch_size * settings.accumulate)) * settings.epochs)
    rows, times = settings.fit().passes
    batch = run.collate(run.rows[:rows])
    with recomputing(model, settings.recompute):
        zeroth = Mezo(parted(model, run.whole), lr=0.0) if settings.optimizer == "mezo" else None
        seconds = _one_step(model, batch, zeroth) * times
    columns = support.stored_columns
    trained, element = run.trained_parameters(model), next(model.parameters()).element_size()
    return {
        "model": settings.model,
        "form": settings.form,
        "lr": settings.lr,
        "task": run.task.name,
        "labels": list(run.task.labels),
        "train_rows": len(run.rows),
        "eval_rows": len(run.data.eval) if run.data.eval else 0,
        "rule": support.rule,
        "allocation": support.allocation,
        "entries": support.entries,
        "share": support.share,
        "head_parameters": run.whole_parameters,
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
        "stored_columns": columns if support.linears else None,  # a low-rank product keeps whole inputs
        "stored_bytes_per_token": element * columns if support.linears else None,
        "optimizer_bytes": 8 * (trained + run.whole_parameters) if settings.optimizer == "adamw" else 0,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds": seconds * steps,
        "memory": ladder.as_json(),
    }


def estimate(settings: TuneSettings, say: Say = print) -> dict[str, Any]:
    """Predicted memory and seconds of every way to make this run, as plain values; trains and writes nothing.

    Raises:
        InputError, BudgetError: as ``tune`` would.
        DoesNotFit: there is a ``memory`` setting, and no way stays within.
    """
    return ladder_of(Run(settings, say), say).required().as_json()


def _one_step(model: nn.Module, batch: dict[str, torch.Tensor], zeroth: Mezo | None) -> float:
    """Seconds of one forward and backward pass, the second of two; in zeroth order, of two forward passes."""
    model.train(zeroth is None)
    seconds = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        if zeroth is not None:
            zeroth.probe(lambda: model(**batch).loss)
        else:
            model(**batch).loss.backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
    return seconds
