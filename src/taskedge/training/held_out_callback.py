"""Evaluation while a run trains, by its settings: the callback, and what its decision leaves in the delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from taskedge.training.held_out import HELD_OUT_LOSS, HeldOut
from taskedge.training.run import Run


def held_out_callback(run: Run, folder: Path) -> HeldOut | None:
    """Return the callback that evaluates while the run trains, if the settings ask for one."""
    config = run.config
    if config.eval_every is None:
        return None
    rows, path = run.held_out_rows()
    if run.data.parts is None and run.data.validation is None and (config.early_stop or config.keep == "best"):
        run.log(
            f"{path} decides which values are kept, so its figures at the end are too good: give --validation for "
            "a decision by other rows"
        )
    return HeldOut(
        rows,
        run.collate,
        path,
        folder,
        every=config.eval_every,
        patience=config.early_stop,
        keep_best=config.keep == "best",
        batch_size=config.trainer_config().rows_per_pass,
        log=run.log,
    )


def kept_values(run: Run, held_out: HeldOut | None, model: nn.Module) -> dict[str, Any]:
    """Set the model to the best values if the settings keep these, and return the loss and step for the provenance."""
    if held_out is None or held_out.best is None:
        return {}
    if run.config.keep != "best":
        return {HELD_OUT_LOSS: held_out.entries[-1][HELD_OUT_LOSS]}
    step, loss = held_out.restore_best(model), held_out.best[HELD_OUT_LOSS]
    run.log(f"kept the values of step {step}, held-out loss {loss:.4f}")
    return {"kept_step": step, HELD_OUT_LOSS: loss}
