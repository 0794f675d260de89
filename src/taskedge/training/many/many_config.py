"""Settings of ``taskedge tune-many``. The only place of their names, defaults and help texts.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from taskedge.training.config import Config
from taskedge.training.trainer_config import DEFAULTS


class TuneManyConfig(Config):
    """Settings of one run over several tasks."""

    model: Annotated[str, Field(description="Base model: a local folder or a hub id.")]
    shared_budget: Annotated[
        str, Field(description="Share of the base's parameters that all tasks change together.")
    ] = "0.1%"
    task_budget: Annotated[
        str, Field(description="Share of the base's parameters that each task may change for itself.")
    ] = "0.05%"
    flops_target: Annotated[
        str | None,
        Field(
            description="Most that one pass for all tasks may cost, in passes of one task, such as 1.5x. Tasks then "
            "share the first blocks. If left out, tasks may have rows of their own in every block."
        ),
    ] = None
    rule: Annotated[str, Field(description="How weights are selected; rules that read gradients are refused here.")] = (
        "taskedge"
    )
    calibration: Annotated[int, Field(description="Batches of each task for the selection.", ge=1)] = 4
    epochs: Annotated[float, Field(description="Passes over the largest training data.", gt=0)] = DEFAULTS.epochs
    lr: Annotated[float, Field(description="Peak learning rate of entries and heads.", gt=0)] = DEFAULTS.lr
    gate_lr: Annotated[float, Field(description="Learning rate of the gates.", gt=0)] = 0.1
    flops_weight: Annotated[float, Field(description="Weight of the cost above the target in the loss.", ge=0)] = 1.0
    batch_size: Annotated[int, Field(description="Rows of each task in a step.", ge=1)] = DEFAULTS.batch_size
    max_length: Annotated[int | None, Field(description="Tokens at which texts are cut.", ge=4)] = None
    text: Annotated[list[str] | None, Field(description="Column with the text, in all data.", min_length=1)] = None
    label: Annotated[str | None, Field(description="Column with the label, in all data.")] = None
    seed: Annotated[int, Field(description="Seed of selection, heads and order.", ge=0)] = 0
    checkpoint_every: Annotated[int, Field(description="Optimizer steps between checkpoints.", ge=1)] = 25
    threads: Annotated[int | None, Field(description="Threads of the model.", ge=1)] = None
    out: Annotated[Path, Field(description="The delta file to write.")] = Path("tasks.safetensors")

    @property
    def target(self) -> float | None:
        """The FLOPs target in passes of one task."""
        return None if self.flops_target is None else _passes(self.flops_target)

    @field_validator("flops_target")
    @classmethod
    def _check_target(cls, value: str | None) -> str | None:
        if value is not None and _passes(value) < 1:
            raise ValueError(f"{value} is less than one pass of one task, which every answer needs: give 1x or more")
        return value

    @field_validator("shared_budget", "task_budget", "rule")
    @classmethod
    def _check_value_is_readable(cls, value: str, info: object) -> str:
        from taskedge.selection.rules import RULES
        from taskedge.selection.select import parse_share

        if getattr(info, "field_name", "") == "rule":
            if RULES[value].needs_gradients:
                others = " or ".join(name for name in RULES if not RULES[name].needs_gradients)
                raise ValueError(
                    f"rule {value!r} reads gradients, and the shared entries belong to no single task: choose {others}"
                )
        else:
            parse_share(value)
        return value


def _passes(text: str) -> float:
    """Return the number of a text such as ``1.5x``."""
    try:
        number = float(text.strip().removesuffix("x"))
    except ValueError:
        raise ValueError(f"{text!r} is no multiple of one pass; write it as 1.5x") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{text!r} is no multiple of one pass; write it as 1.5x")
    return number
