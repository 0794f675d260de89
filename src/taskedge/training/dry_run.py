"""Dry run: what ``tune`` would train, without a step of it; and the estimate of what that costs. Both write nothing."""

from __future__ import annotations

from typing import Any

from taskedge.backbone.coverage import log_coverage
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.install_taps import whole_layers
from taskedge.training.class_weights import weights_by_label
from taskedge.training.find_support import state_gates
from taskedge.training.guard import explained
from taskedge.training.memory.decide import profile_all_options
from taskedge.training.run import prepare_run
from taskedge.training.tasks import Log
from taskedge.training.trainer import num_steps
from taskedge.training.tune_config import TuneConfig


def dry_run(config: TuneConfig, log: Log = print) -> dict[str, Any]:
    """Return what :func:`taskedge.training.tune.tune` would do, as plain values.

    Nothing is timed, and no memory is measured: :func:`estimate` does both. So a ``memory`` budget is not applied.

    Raises:
        InputError, BudgetError: as ``tune`` would.
    """
    run = prepare_run(config, log)
    run.load()
    log_coverage(run.base.model, log)
    run.check_forward()
    config = run.config
    run.warm_head()  # gradients of the selection pass through it
    state_gates(run)
    if config.memory is not None:
        log(f"--memory {config.memory}: the plan is that of the other settings; `taskedge estimate` measures what fits")
    weights = run.class_weights()
    support = run.select()
    shapes = {name: linear.shape for name, linear in linears(run.base.model).items()}
    model = run.install(support).model
    trained, element_size = run.num_trained_parameters(model), next(model.parameters()).element_size()
    optimizer_bytes = 8 * (trained + run.num_full_parameters) if config.optimizer == "adamw" else 0
    beside = dict.fromkeys(support.linears, config.rank) if config.form == "sparse_plus_low_rank" else {}
    products = {**support.low_rank, **beside}
    # a low-rank product keeps its full input, so columns tell nothing
    stored_columns = support.stored_columns if support.linears and not beside else None
    return {
        "model": config.model,
        "form": config.form,
        "lr": config.lr,
        "task": run.task.name,
        "labels": list(run.task.labels),
        "train_rows": len(run.rows),
        "eval_rows": len(run.data.eval) if run.data.eval else 0,
        "held_out_rows": len(run.held_out_rows()[0]) if config.eval_every or run.data.parts else 0,
        "eval_every": config.eval_every,
        "early_stop": config.early_stop,
        "keep": config.keep,
        "class_weights": weights_by_label(weights, run.task.labels),
        "from_delta": None if config.from_delta is None else str(config.from_delta),
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
                "distinct_rows": len(linear.distinct_rows),
            }
            for name, linear in support.linears.items()
        ],
        "low_rank": [{"name": name, "shape": list(shapes[name]), "rank": rank} for name, rank in products.items()],
        "whole_layers": [{"name": name, "shape": list(shapes[name])} for name in whole_layers(support)],
        "trained_parameters": trained,
        "stored_columns": stored_columns,
        "stored_bytes_per_token": None if stored_columns is None else element_size * stored_columns,
        "optimizer_bytes": optimizer_bytes,
        "steps": num_steps(len(run.rows), config.trainer_config()),
    }


def estimate(config: TuneConfig, log: Log = print) -> dict[str, Any]:
    """Return the predicted memory and time of every configuration of this run, as plain values; train nothing.

    Raises:
        InputError, BudgetError: as ``tune`` would.
        DoesNotFit: there is a ``memory`` setting, and no configuration fits.
    """
    if config.form == "prompt":
        raise InputError("the memory of --form prompt is not predicted: use another --form, or run tune itself")
    run = prepare_run(config, log)
    with explained(run.check_forward):
        if run.config.support != "rule":
            run.load()
            state_gates(run)
        return profile_all_options(run, log).required().as_json()
