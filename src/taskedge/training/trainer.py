"""``fit``: trains whatever parameters of a model require gradients. The loop is the Hugging Face ``Trainer``.

Ours are only the checkpoints (small, whole, without pickle), the stop at a loss that is not a number, and the progress
line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from taskedge.errors import TrainingDiverged
from taskedge.forms.kernels import using
from taskedge.forms.recompute import recomputing
from taskedge.profiling.process_memory import return_freed_memory
from taskedge.training import checkpoint as checkpoints
from taskedge.training.memory.mezo import Mezo, exact_names
from taskedge.training.memory.micro_batch import counted, shifts_labels
from taskedge.training.memory.rotate import Rotate
from taskedge.training.regrow import Regrow
from taskedge.training.trainer_config import FitSettings


@dataclass(frozen=True)
class FitResult:
    """What a run of :func:`fit` did."""

    steps: int
    loss: float
    """Mean training loss over all steps, those before a resumption included."""
    seconds: float
    seconds_per_step: float
    """Mean, all that belongs to a step included; 0 where none was left to do."""
    cpu_seconds_per_step: float
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
    head: Collection[str] = (),
) -> FitResult:
    """Trains the parameters of ``model`` that require gradients on ``rows``, in place.

    Args:
        model: takes the collated batch as keyword arguments and returns an output with ``loss``.
        rows: examples; ``collate`` makes a batch of a list of them.
        settings: see :class:`FitSettings`.
        folder: for checkpoints and logs.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        progress: show a progress line on standard error.
        head: names of the parameters that train at ``settings.head_lr``, where it is given.

    Raises:
        TrainingDiverged: the loss is not a finite number; parameters and checkpoints are from before that step.
    """
    rows_of_pass, passes_of_step = settings.passes
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.lr,
        per_device_train_batch_size=rows_of_pass,
        gradient_accumulation_steps=passes_of_step,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip if settings.optimizer == "adamw" else 0,
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
    line, pace = _Progress(), _Pace()
    moving: list[TrainerCallback] = [Regrow(rows, collate, settings)] if settings.regrow else []
    moving += [Rotate(model, settings.rotate)] if settings.rotate else []
    trainer = _Trainer(
        head=head,
        settings=settings,
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=[*moving, *callbacks, pace, *([line] if progress else [])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if settings.sparing:
        return_freed_memory()
    start = checkpoints.latest(folder) if resume else None
    if start is not None:
        checkpoints.Checkpoint(start)  # refuses a damaged one before the Trainer reads its position
    try:
        with using("gather") if settings.sparing else nullcontext(), recomputing(model, settings.recompute):
            done = trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        line.close()
    return FitResult(
        steps=int(trainer.state.global_step),
        loss=trainer.loss_sum / max(trainer.state.global_step, 1),
        seconds=float(done.metrics["train_runtime"]),
        seconds_per_step=pace.wall,
        cpu_seconds_per_step=pace.cpu,
        log=list(trainer.state.log_history),
    )


_LOSS_SUM = "taskedge_loss_sum"


class _Trainer(Trainer):  # type: ignore[misc]
    """The Trainer with our checkpoints in place of its own, which hold the whole model and are pickled.

    The parts of a step weigh by the labels that their losses count. Losses of causal language models divide by the
    number of the step's labels when they are told it, and are told it; those of other models are means over their
    part, whatever they are told (the Trainer, which takes their word, would sum these means).
    """

    def __init__(self, *, head: Collection[str], settings: FitSettings, **given: Any) -> None:
        super().__init__(**given)
        mezo = settings.optimizer == "mezo"
        self._head, self._settings = exact_names(self.model, head) if mezo else frozenset(head), settings
        self._mezo: Mezo | None = None
        self._labels = 0
        self._loss_shifts_labels = shifts_labels(self.model)  # the Trainer asks the class's name, and GPT-2's tells not
        self._means = not self._loss_shifts_labels
        if self._means:
            self.model_accepts_loss_kwargs = False

    def get_batch_samples(self, *given: Any) -> Any:
        batches, told = super().get_batch_samples(*given)
        self._labels = sum(map(counted, batches))
        return batches, told

    def compute_loss(self, model: nn.Module, inputs: Any, *given: Any, **named: Any) -> Any:
        loss = super().compute_loss(model, inputs, *given, **named)
        return loss * (counted(inputs) / self._labels) if self._means else loss

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        """The Trainer's own, the head in groups with a rate of its own where the settings give one; or MeZO."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(*given)
        s, kept = self._settings, ("params", "lr", "weight_decay")
        if s.optimizer != "mezo":
            self._part_head(optimizer, s.head_lr)
            return optimizer
        self._part_head(optimizer, FitSettings.lr if s.head_lr is None else s.head_lr)
        groups = [
            {key: group[key] for key in kept} | {"exact": self._is_head(group)} for group in optimizer.param_groups
        ]
        groups = [group for group in groups if group["params"]]
        self._mezo = Mezo(groups, s.lr, perturbation=s.perturbation, seed=s.seed)
        self.optimizer: torch.optim.Optimizer = self._mezo
        return self._mezo

    def _part_head(self, optimizer: torch.optim.Optimizer, rate: float | None) -> None:
        """Puts the head into groups with a rate of its own, where there is one."""
        if rate is None:
            return
        head = self._of_head()
        for group in list(optimizer.param_groups):
            of_head = [parameter for parameter in group["params"] if id(parameter) in head]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
            optimizer.add_param_group({**group, "params": of_head, "lr": rate})

    def _is_head(self, group: dict[str, Any]) -> bool:
        head = self._of_head()
        return any(id(parameter) in head for parameter in group["params"])

    def _of_head(self) -> set[int]:
        return {id(parameter) for name, parameter in self.model.named_parameters() if name in self._head}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self._means:
            self.current_gradient_accumulation_steps = 1  # the losses are weighted already
        if self._mezo is None:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.eval()
            prepared = self._prepare_inputs(inputs)
            loss = self._mezo.probe(
                lambda: self.compute_loss(model, dict(prepared), num_items_in_batch=num_items_in_batch)
            )
        if not torch.isfinite(loss):
            folder = Path(self.args.output_dir)
            checkpoints.discard(folder, self.state.global_step)  # it holds the very values that gave this loss
            kept = checkpoints.latest(folder)
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} "
                f"(learning rate {self._get_learning_rate():.3g}): try a lower learning rate"
                + (f"; the last good checkpoint is {kept}" if kept else "")
            )
        self.state.stateful_callbacks[_LOSS_SUM] = self.loss_sum + float(loss)
        return loss

    @property
    def loss_sum(self) -> float:
        """Of all steps so far; kept in the Trainer's state, which checkpoints hold."""
        return float(self.state.stateful_callbacks.get(_LOSS_SUM, 0.0))

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


class _Pace(TrainerCallback):  # type: ignore[misc]
    """Mean seconds of a step on the wall's clock and of the processor."""

    def __init__(self) -> None:
        self._steps = 0
        self._begin = self._end = (0.0, 0.0)

    @property
    def wall(self) -> float:
        return (self._end[0] - self._begin[0]) / max(self._steps, 1)

    @property
    def cpu(self) -> float:
        return (self._end[1] - self._begin[1]) / max(self._steps, 1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._steps:
            self._begin = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps += 1
        self._end = time.perf_counter(), time.process_time()


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A progress line on standard error: steps, time left, and the loss as it was last logged."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            file=sys.stderr,
            unit="step",
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log wants few lines
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self) -> None:
        """Ends the line, however training ended."""
        if self._bar is not None:
            self._bar.close()
