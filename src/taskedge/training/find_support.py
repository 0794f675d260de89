"""Supports that are found by training instead of by a rule, and resumed like a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from taskedge.errors import InputError, TaskEdgeError
from taskedge.selection.support import Support, save_support
from taskedge.training import checkpoint
from taskedge.training.diff_pruning import find_by_gates, gated_weights
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
    run.log(f"diff pruning: {gated_weights(run.base.model, run.config.budget, run.config.depth)}")
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
            support = find_by_gates(
                run.base.model,
                run.rows,
                run.collate,
                run.calibration_batches(),
                config.trainer_config().model_copy(update=changes),
                gate_config(run),
                budget=config.budget,
                head=run.full_names,
                folder=steps,
                depth=config.depth,
                resume=resume,
                progress=progress,
                log=run.log,
            )
        if not support.linears:
            shutil.rmtree(steps, ignore_errors=True)
            raise InputError(
                f"all gates closed in {config.support_epochs:g} epochs, so nothing is left to train: give a smaller "
                "--gate-penalty, or a larger --support-lr"
            )
    except TaskEdgeError:
        if checkpoint.latest(steps) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    expected = support.settings["expected_share"]
    run.log(f"diff pruning: {support}; expected share of all parameters with an open gate {expected:.3%}")
    save_support(support, folder / name)
    shutil.rmtree(steps, ignore_errors=True)
    return support
