"""Settings of ``taskedge tune`` about the training. The only place of their names, defaults and help texts.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from taskedge.training.config import Config
from taskedge.training.trainer_config import (
    DEFAULTS,
    HEAD_LEARNING_RATE,
    OptimizerName,
    Recompute,
    TrainerConfig,
    trainer_field,
)

LEARNING_RATES = {
    **{"sparse": DEFAULTS.lr, "sparse_lora": 3e-2, "sparse_plus_low_rank": DEFAULTS.lr, "lora": 1e-3},
    **{"taps": 1e-4, "sparse_taps": DEFAULTS.lr, "filtered": 1e-3, "prompt": 3e-2},
}
"""Default peak learning rate of each form."""


class TrainingSettings(Config):
    """Settings of one run about its training: those of the training loop, and a few of its own."""

    epochs: float = trainer_field("epochs")
    optimizer: OptimizerName = trainer_field("optimizer")
    perturbation: float = trainer_field("perturbation")
    lr: float = Field(
        default=None,
        validate_default=True,
        gt=0,
        description="Peak learning rate.  "
        f"[default: {', '.join(f'{form} {rate:g}' for form, rate in LEARNING_RATES.items())}]",
    )
    head_lr: float | None = trainer_field(
        "head_lr",
        validate_default=True,
        description=f"Peak learning rate of the fully trained parameters (the head).  [default: {HEAD_LEARNING_RATE}]",
    )
    head_warmup: Annotated[
        bool,
        Field(description="Train the head alone first, on features computed once. For classes and numbers."),
    ] = False
    batch_size: int = trainer_field("batch_size")
    accumulate: int = trainer_field("accumulate")
    micro_batch: int | None = trainer_field("micro_batch")
    weight_decay: float = trainer_field("weight_decay")
    warmup: float = trainer_field("warmup")
    clip: float = trainer_field("clip")
    bf16: bool = trainer_field("bf16")
    recompute: Recompute = trainer_field("recompute")
    rotate: int = trainer_field("rotate")
    max_length: Annotated[
        int | None,
        Field(description="Longest text in tokens; longer ones are cut.  [default: 128; for generation 512]", ge=1),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(description="Longest generated response in tokens.  [default: the longest in the training data]", ge=1),
    ] = None
    strict: Annotated[bool, Field(description="Refuse data that is warned about.")] = False
    seed: int = trainer_field("seed")
    threads: Annotated[int | None, Field(description="CPU threads; 1 makes runs bit-identical.", ge=1)] = None
    checkpoint_every: int = trainer_field(
        "checkpoint_every", default=25, description="Optimizer steps between checkpoints.", ge=1
    )
    eval_every: Annotated[
        int | None, Field(description="Optimizer steps between evaluations of the held-out loss.", ge=1)
    ] = None
    early_stop: Annotated[
        int | None, Field(description="With --eval-every: evaluations without a new best that end the run.", ge=1)
    ] = None
    keep: Annotated[
        Literal["last", "best"],
        Field(description="With --eval-every: write the values of the last step, or of the lowest held-out loss."),
    ] = "last"
    from_delta: Annotated[
        Path | None,
        Field(description="Continue from the entries, values and head of this delta file, instead of a selection."),
    ] = None
    regrow: int = trainer_field("regrow")
    regrow_share: float = trainer_field("regrow_share")

    def trainer_config(self) -> TrainerConfig:
        """Return the settings of the training loop."""
        return TrainerConfig(**{name: getattr(self, name) for name in TrainerConfig.model_fields})

    @field_validator("lr", mode="before")
    @classmethod
    def _default_lr_of_form(cls, value: Any, info: ValidationInfo) -> Any:
        return LEARNING_RATES[info.data.get("form", "sparse")] if value is None else value

    @field_validator("head_lr", mode="before")
    @classmethod
    def _default_head_lr(cls, value: Any, info: ValidationInfo) -> Any:
        """Leave out a default that equals the rate of the rest: one group of parameters has the same values."""
        if value is not None or info.data.get("optimizer") == "mezo" or info.data.get("lr") == HEAD_LEARNING_RATE:
            return value
        return HEAD_LEARNING_RATE

    @model_validator(mode="after")
    def _check_optimizer(self) -> TrainingSettings:
        if self.optimizer != "mezo":
            without_effect = self.model_fields_set & {"perturbation"}
        elif "lr" not in self.model_fields_set:
            raise ValueError(
                "--optimizer mezo needs other learning rates than AdamW, and no default suits all tasks: give --lr"
            )
        else:
            without_effect = self.model_fields_set & {"clip"}
            if self.recompute != "none":
                without_effect.add("recompute")
            if self.regrow:
                without_effect.add("regrow")
        if without_effect:
            raise ValueError(f"--{min(without_effect)} has no effect with --optimizer {self.optimizer}: leave it out")
        return self
