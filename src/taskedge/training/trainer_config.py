"""Settings of the training loop. The only place of their defaults and help texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from taskedge.training.config import Config

Recompute = Literal["none", "blocks", "inputs"]
OptimizerName = Literal["adamw", "mezo"]

HEAD_LEARNING_RATE = 3e-2
"""Peak learning rate of a head where none is given. A fresh head learns too little at the rates that suit LoRA."""


class TrainerConfig(Config):
    """Settings of :func:`taskedge.training.trainer.train`."""

    epochs: Annotated[float, Field(description="Passes over the training data.", gt=0)] = 3.0
    optimizer: Annotated[
        OptimizerName,
        Field(
            description="'mezo' needs no gradients except those of the head: it has the memory use of inference, and "
            "takes many more steps."
        ),
    ] = "adamw"
    perturbation: Annotated[float, Field(description="Perturbation scale of mezo (epsilon).", gt=0)] = 1e-3
    # For sparse values with scaled steps: these need far more than LoRA (about 1e-3) or full fine-tuning (about 1e-4).
    lr: Annotated[float, Field(description="Peak learning rate.", ge=0)] = 3e-2
    head_lr: Annotated[
        float | None,
        Field(
            description="Peak learning rate of the fully trained parameters (the head).  "
            f"[default: lr; with mezo {HEAD_LEARNING_RATE}]",
            gt=0,
        ),
    ] = None
    batch_size: Annotated[int, Field(description="Rows in a batch; 8 for generation, if left out.", ge=1)] = 16
    accumulate: Annotated[int, Field(description="Batches per optimizer step.", ge=1)] = 1
    micro_batch: Annotated[
        int | None,
        Field(
            description="Rows that pass through the model at once; a divisor of the batch size. The gradient is that "
            "of the batch.",
            ge=1,
        ),
    ] = None
    weight_decay: Annotated[
        float, Field(description="Decay of offsets to 0, that is, of weights to the base.", ge=0)
    ] = 0.0
    warmup: Annotated[
        float,
        Field(
            description="Share of the steps over which the learning rate rises; it falls linearly after.", ge=0, lt=1
        ),
    ] = 0.06
    clip: Annotated[float, Field(description="Largest norm of the gradient; 0 for no clipping.", ge=0)] = 1.0
    bf16: Annotated[bool, Field(description="Compute in bfloat16 where it is safe (autocast).")] = False
    recompute: Annotated[
        Recompute,
        Field(
            description="Activations to recompute in the backward pass: those of whole blocks, or in each block those "
            "between its matrix products."
        ),
    ] = "none"
    rotate: Annotated[
        int, Field(description="Optimizer steps that each block trains in its turn; 0 to train all at once.", ge=0)
    ] = 0
    seed: Annotated[int, Field(description="Seed of the new head, the order of the data, and dropout.", ge=0)] = 0
    checkpoint_every: Annotated[
        int, Field(description="Optimizer steps between checkpoints; 0 for no checkpoints.", ge=0)
    ] = 0
    regrow: Annotated[int, Field(description="Optimizer steps between changes of the support; 0 to keep it.", ge=0)] = 0
    regrow_share: Annotated[
        float,
        Field(
            description="Share of the entries that the first change of the support moves; it falls linearly to 0.",
            gt=0,
            le=1,
        ),
    ] = 0.2

    @model_validator(mode="after")
    def _check_micro_batch(self) -> TrainerConfig:
        if self.batch_size % self.rows_per_pass:
            divisors = [str(rows) for rows in range(1, self.batch_size + 1) if self.batch_size % rows == 0]
            raise ValueError(
                f"a micro-batch of {self.micro_batch} rows does not divide a batch of {self.batch_size}: give one of "
                + ", ".join(divisors)
            )
        return self

    @property
    def low_memory(self) -> bool:
        """Whether a setting trades time for memory.

        If so, freed memory is returned to the system at once, and entries do without the numba kernel, whose compiler
        needs memory as well.
        """
        return bool(self.recompute != "none" or self.micro_batch or self.rotate or self.optimizer == "mezo")

    @property
    def rows_per_pass(self) -> int:
        """Rows that pass through the model at once."""
        return self.batch_size if self.micro_batch is None else self.micro_batch

    @property
    def passes_per_step(self) -> int:
        """Forward and backward passes in one optimizer step."""
        return self.batch_size // self.rows_per_pass * self.accumulate


DEFAULTS = TrainerConfig()
"""Defaults of the training loop, for other settings and signatures that share them."""


def trainer_field(name: str, **changes: Any) -> Any:
    """Return a pydantic field with the default, description and constraints of a :class:`TrainerConfig` field.

    Args:
        name: a field of :class:`TrainerConfig`.
        changes: arguments of :func:`pydantic.Field` that differ.
    """
    info = TrainerConfig.model_fields[name]
    constraints = {
        constraint: getattr(item, constraint)
        for item in info.metadata
        for constraint in ("gt", "ge", "lt", "le")
        if hasattr(item, constraint)
    }
    return Field(**{"default": info.default, "description": info.description, **constraints, **changes})
