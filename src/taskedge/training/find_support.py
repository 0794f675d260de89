"""Supports that are found by training instead of by a rule, and resumed like a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.errors import InputError, TaskEdgeError
from taskedge.selection.select import parse_share, select
from taskedge.selection.support import Support, save_support
from taskedge.training import checkpoint
from taskedge.training.candidate_gates import find_among_candidates
from taskedge.training.diff_pruning import find_by_gates, gated_weights
from taskedge.training.gate_search import search_penalty
from taskedge.training.gates import GateConfig
from taskedge.training.guard import in_file
from taskedge.training.run import Run
from taskedge.training.selection_settings import GATE_PENALTY
from taskedge.training.trainer_config import HEAD_LEARNING_RATE

GATES_FOLDER = "gates"
"""Folder of the checkpoints, in the folder of the run."""


def gate_config(run: Run) -> GateConfig:
    """Return the settings of the gates of a run."""
    config = run.config
    return GateConfig(
        structured=config.gates == "structured",
        group_penalty=config.group_penalty,
        penalty=GATE_PENALTY if config.gate_penalty is None else config.gate_penalty,
        clip=config.clip,
    )


def state_gates(run: Run) -> None:
    """Log what gates would need, and that their place is taken by a random support, if the run finds its own by gates.

    Raises:
        BudgetError, InputError: see :func:`taskedge.training.diff_pruning.gated_weights`.
    """
    if run.config.support == "rule":
        return
    if run.config.candidates is None:
        run.log(f"diff pruning: {gated_weights(run.base.model, run.config.budget, run.config.depth)}")
    else:
        run.log(
            f"diff pruning: gates on {run.config.candidates} candidates of each neuron by rule {run.config.rule!r}, of "
            f"which {run.config.per_neuron or 1} stay"
        )
    run.log(
        "the entries are not known before the gates are trained: what follows is for the training after that, with as "
        "many random entries, whose columns differ"
    )


def find_in_steps(run: Run, folder: Path, name: str, *, resume: bool = False, progress: bool = True) -> Support:
    """Find the support of a run by training gates, and save it in the folder of the run.

    Checkpoints are in a folder within it until the support is saved. If nothing is worth resuming after an error, the
    folder of the run is removed.

    Args:
        run: loaded, with a warmed head if it has one.
        folder: of the run.
        name: of the file to write.
        resume: continue from the newest checkpoint.
        progress: show a progress line.

    Raises:
        BudgetError, InputError: see :func:`taskedge.training.diff_pruning.gated_weights`; all gates are closed.
        TrainingDiverged: the loss is not a finite number.
    """
    config, steps = run.config, folder / GATES_FOLDER
    changes = {"epochs": config.support_epochs, "lr": config.support_lr, "optimizer": "adamw", "regrow": 0, "rotate": 0}
    changes["head_lr"] = config.head_lr or HEAD_LEARNING_RATE  # also where that is the rate of the rest in training
    try:
        with in_file(run.data.train.path):
            find = _by_gates if config.candidates is None else _among_candidates
            gates, share = gate_config(run), _budget_share(run)
            support = search_penalty(
                lambda own, place: find(run, changes, own, place, resume, progress),
                gates, share, config.gate_tries, steps, run.log,
            )  # fmt: skip
        if not support.linears:
            shutil.rmtree(steps, ignore_errors=True)
            raise InputError(
                f"all gates closed in {config.support_epochs:g} epochs, so nothing is left to train: give a smaller "
                "--gate-penalty, or a larger --support-lr"
            )
    except TaskEdgeError:
        if checkpoint.latest(steps) is None and not any(steps.glob("try-*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    expected = support.settings["expected_share"]
    run.log(f"diff pruning: {support}; expected share of all parameters with an open gate {expected:.3%}")
    save_support(support, folder / name)
    shutil.rmtree(steps, ignore_errors=True)
    return support


def _budget_share(run: Run) -> float:
    """Return the share of the model's parameters that is to stay."""
    config = run.config
    if config.candidates is None:
        return parse_share(config.budget)
    model = run.base.model
    usable = candidates(model) if config.depth is None else candidates_within(model, config.depth)
    count = (config.per_neuron or 1) * sum(linear.shape[0] for linear in usable.values())
    return count / sum(parameter.numel() for parameter in model.parameters())


def _by_gates(
    run: Run, changes: dict[str, Any], gates: GateConfig, folder: Path, resume: bool, progress: bool
) -> Support:
    """Return the largest changes of all weights that can carry entries."""
    config = run.config
    return find_by_gates(
        run.base.model,
        run.rows,
        run.collate,
        run.calibration_batches(),
        config.trainer_config().model_copy(update=changes),
        gates,
        budget=config.budget,
        head=run.full_names,
        folder=folder,
        depth=config.depth,
        resume=resume,
        progress=progress,
        log=run.log,
    )


def _among_candidates(
    run: Run, changes: dict[str, Any], gates: GateConfig, folder: Path, resume: bool, progress: bool
) -> Support:
    """Return the largest changes of a few candidates of each neuron."""
    config, trainer = run.config, run.config.trainer_config()
    if "support_lr" not in config.model_fields_set:
        changes = changes | {"lr": trainer.lr}  # candidates are entries, so the rate of entries suits them
    chosen = select(
        run.base.model,
        run.calibration_batches(),
        rule=config.rule,
        per_neuron=config.candidates,
        depth=config.depth,
        seed=config.seed,
    )
    return find_among_candidates(
        run.base.model,
        chosen,
        run.rows,
        run.collate,
        trainer.model_copy(update=changes),
        gates,
        per_neuron=config.per_neuron or 1,
        head=run.full_names,
        folder=folder,
        step=config.step,
        step_exponent=config.step_exponent,
        resume=resume,
        progress=progress,
        log=run.log,
    )
