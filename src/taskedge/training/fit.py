"""``fit``: trains whatever parameters of a model require gradients. The loop is the Hugging Face ``Trainer``.

Ours are only the checkpoints (small, whole, without pickle), the stop at a loss that is not a number, and the progress
line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from taskedge.errors import TrainingDiverged
from taskedge.training import checkpoint as checkpoints


@dataclass(frozen=True)
class FitSettings:
    """How to train. One place for these defaults; the command line takes them from here."""

    epochs: float = 3.0
    lr: float = 3e-3
    """Peak learning rate. Sparse values want far larger steps than LoRA (some 3e-4) or full fine-tuning (some 3e-5)."""
    batch_size: int = 32
    accumulate: int = 1
    """Batches per optimiser step."""
    weight_decay: float = 0.0
    """Pulls offsets towards 0, that is, weights towards the base."""
    warmup: float = 0.06
    """Share of the steps over which the learning rate rises; it falls linearly after."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    group_by_length: bool = False
    """Batches of texts of like length: less padding, less random."""
    bf16: bool = False
    """Autocast to bfloat16."""
    seed: int = 0
    checkpoint_every: int = 0
    """Optimiser steps between checkpoints; 0 for none."""


@dataclass(frozen=True)
class FitResult:
    """What a run of :func:`fit` did."""

    steps: int
    loss: float
    """Mean training loss over the steps of this call."""
    seconds: float
    log: list[dict[str, Any]]


def fit(
    model: nn.Module,
    rows: Sequence[dict[str, Any]],
    collate: Any,
    settings: FitSettings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    tensorboard: bool = False,
) -> FitResult:
    """Trains the parameters of ``model`` that require gradients on ``rows``, in place.

    Args:
        model: takes the collated batch as keyword arguments and returns an output with ``loss``.
        rows: examples; ``collate`` makes a batch of a list of them.
        settings: see :class:`FitSettings`.
        folder: for checkpoints and logs.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        progress: show a progress line on standard error.

    Raises:
        TrainingDiverged: the loss is not a finite number; parameters and checkpoints are from before that step.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        bf16=settings.bf16,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 500,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to="tensorboard" if tensorboard else "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=[*callbacks, *([_Progress()] if progress else [])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    start = checkpoints.latest(folder) if resume else None
    if start is not None:
        checkpoints.Checkpoint(start)  # refuses a damaged one before the Trainer reads its position
    done = trainer.train(resume_from_checkpoint=str(start) if start else None)
    return FitResult(
        steps=int(trainer.state.global_step),
        loss=float(done.training_loss),
        seconds=float(done.metrics["train_runtime"]),
        log=list(trainer.state.log_history),
    )


class _Trainer(Trainer):  # type: ignore[misc]
    """The Trainer with our checkpoints in place of its own, which hold the whole model and are pickled."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            kept = checkpoints.latest(Path(self.args.output_dir))
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} "
                f"(learning rate {self._get_learning_rate():.3g}): try a lower learning rate"
                + (f"; the last good checkpoint is {kept}" if kept else "")
            )
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        state = json.dumps(asdict(self.state), default=str)
        checkpoints.write(
            Path(self.args.output_dir), self.state.global_step, self.model, self.optimizer, self.lr_scheduler, state
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.Checkpoint(Path(resume_from_checkpoint)).restore_parameters(self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.Checkpoint(Path(checkpoint)).restore_optimizer(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.Checkpoint(Path(checkpoint)).restore_random()


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A progress line on standard error: steps, time left, and the loss as it was last logged."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", file=sys.stderr, unit="step"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()
