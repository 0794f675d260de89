"""The training loop: trains the parameters of a model that require gradients, and resumes to the same bits.

Order of the rows, learning rates, clipping, optimizer and random numbers are those of the ``Trainer`` of transformers
on one device. The loop is written out because its steps differ: losses are weighted by the labels that they count, MeZO
takes two forward passes, checkpoints hold only what is trained, and a loss that is not finite stops the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from taskedge.errors import TrainingDiverged
from taskedge.forms.kernels import force_kernel
from taskedge.forms.recompute import recomputing
from taskedge.profiling.process_memory import TIGHT_THRESHOLD_BYTES, return_freed_memory
from taskedge.training import checkpoint as checkpoints
from taskedge.training.callbacks import Callback, ProgressLine, StepTimer, TensorBoardLog, TrainState
from taskedge.training.column_draws_callback import ColumnDraws, draws_columns
from taskedge.training.data_order import epoch_order
from taskedge.training.guard import guarded
from taskedge.training.memory.mezo import Mezo
from taskedge.training.memory.rotate import RotationCallback
from taskedge.training.optimizer import learning_rate_factor, make_optimizer
from taskedge.training.passes_loss import PassesLoss
from taskedge.training.regrow_callback import Regrow
from taskedge.training.trainer_config import TrainerConfig

Row = dict[str, Any]
Batch = Mapping[str, Any]

LOG_EVERY = 10
"""Steps between entries of the log; the last step has an entry as well."""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of :func:`train`.

    Attributes:
        steps: optimizer steps of the whole run.
        loss: mean training loss of all steps, including those before a resumption.
        seconds: duration of this call.
        seconds_per_step: mean duration of a step, with everything that belongs to it; 0 if no step was left.
        cpu_seconds_per_step: the same in processor time.
        log: see :class:`taskedge.training.callbacks.TrainState`.
    """

    steps: int
    loss: float
    seconds: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    log: list[dict[str, Any]]


def train(
    model: nn.Module,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], Batch],
    config: TrainerConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    tensorboard: bool = False,
    head: Collection[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> TrainResult:
    """Train the parameters of ``model`` that require gradients on ``rows``, in place.

    Args:
        model: takes the collated batch as keyword arguments and returns an output with ``loss``.
        rows: examples.
        collate: makes a batch of a list of them.
        config: see :class:`~taskedge.training.trainer_config.TrainerConfig`.
        folder: for checkpoints and logs.
        resume: continue from the newest checkpoint in ``folder``, if there is one.
        progress: show a progress line on standard error.
        callbacks: run after those that move entries or rotate blocks.
        tensorboard: write logs for TensorBoard to ``folder``.
        head: names of the fully trained parameters. They train at ``config.head_lr``, if it is set.
        optimizer: by default that of :func:`make_optimizer`. Its groups have their peak rates as ``initial_lr``.

    Raises:
        InputError: a checkpoint is damaged or cannot be written.
        TrainingDiverged: the loss is not a finite number. Parameters and checkpoints are from before that step.
    """
    from transformers import set_seed

    begin = time.perf_counter()
    timer = StepTimer()
    hooks: list[Callback] = []
    if config.regrow:
        hooks.append(Regrow(rows, collate, config))
    if config.rotate:
        hooks.append(RotationCallback(model, config.rotate))
    if draws_columns(model):
        hooks.append(ColumnDraws())
    hooks += [*callbacks, timer]
    if progress:
        hooks.append(ProgressLine())
    if tensorboard:
        hooks.append(TensorBoardLog(folder))

    set_seed(config.seed)
    model_config: Any = getattr(model, "config", None)
    if model_config is not None:
        model_config.use_cache = False  # training does not use the keys and values of earlier tokens
    max_steps = num_steps(len(rows), config)
    state = TrainState(model, optimizer or make_optimizer(model, config, head), max_steps)
    newest = checkpoints.latest(folder) if resume else None
    checkpoint = None if newest is None else checkpoints.Checkpoint(newest)
    if config.low_memory:
        # nearly all tensors of a step of few rows are below 1 MiB, and a heap of them keeps what they leave
        return_freed_memory(TIGHT_THRESHOLD_BYTES)
    try:
        with ExitStack() as stack:
            if config.low_memory:
                stack.enter_context(force_kernel("gather"))
            if config.bf16:
                stack.enter_context(bf16_forward(model))
            stack.enter_context(recomputing(model, config.recompute))
            _run(state, rows, collate, config, folder, hooks, checkpoint)
    finally:
        for hook in hooks:
            hook.on_train_end()
    return TrainResult(
        steps=state.step,
        loss=state.loss_sum / max(state.step, 1),
        seconds=time.perf_counter() - begin,
        seconds_per_step=timer.wall_seconds,
        cpu_seconds_per_step=timer.cpu_seconds,
        log=state.log,
    )


def _run(
    state: TrainState,
    rows: Sequence[Row],
    collate: Callable[[list[Row]], Batch],
    config: TrainerConfig,
    folder: Path,
    hooks: Sequence[Callback],
    checkpoint: checkpoints.Checkpoint | None,
) -> None:
    """Train from the checkpoint, or from the beginning, to the last step."""
    model, optimizer = state.model, state.optimizer
    passes_loss = PassesLoss(model)
    if checkpoint is not None:
        checkpoint.restore(state)
    logged_step, logged_sum = state.step, state.loss_sum
    order: list[int] = []
    model.zero_grad()
    for hook in hooks:
        hook.on_train_begin(state)

    while state.step < state.max_steps and not state.stop:
        epoch, step_of_epoch = divmod(state.step, _steps_per_epoch(len(rows), config))
        if not order or step_of_epoch == 0:
            order = epoch_order(len(rows), config.seed, epoch)
            _set_random_state_of_epoch(checkpoint, step_of_epoch)
            checkpoint = None
        rate = learning_rate_factor(state.step, state.max_steps, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        passes = _pass_indices(order, step_of_epoch, config)
        batches = [collate([rows[i] for i in indices]) for indices in passes]

        for hook in hooks:
            hook.on_step_begin(state)
        passes_loss.begin_step(batches)
        for index, batch in enumerate(batches):
            if index > 0:
                for hook in hooks:
                    hook.on_pass_end(state)
            with guarded(model, rows, passes[index], collate):
                if isinstance(optimizer, Mezo):
                    model.eval()
                    loss = optimizer.probe(partial(passes_loss, batch))
                else:
                    model.train()
                    loss = passes_loss(batch)
                    loss.backward()  # type: ignore[no-untyped-call]
                    loss = loss.detach()
            if not torch.isfinite(loss):
                raise _diverged(loss, state, folder)
            state.loss_sum += float(loss)

        is_last = state.step + 1 == state.max_steps
        logs = is_last or (state.step + 1) % LOG_EVERY == 0
        norm = None
        if config.clip and not isinstance(optimizer, Mezo):
            norm = clip_grad_norm_(model.parameters(), config.clip)
        elif logs:
            norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        for hook in hooks:
            hook.on_gradients(state)
        optimizer.step()
        model.zero_grad()
        state.step += 1
        for hook in hooks:
            hook.on_step_end(state)

        is_last = is_last or state.stop
        if logs or (state.stop and norm is not None):
            assert norm is not None
            passes_done = step_of_epoch * config.passes_per_step + len(batches)
            state.log.append(
                {
                    "loss": (state.loss_sum - logged_sum) / (state.step - logged_step),
                    "grad_norm": float(norm),
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "epoch": epoch + passes_done / math.ceil(len(rows) / config.rows_per_pass),
                    "step": state.step,
                }
            )
            logged_step, logged_sum = state.step, state.loss_sum
            for hook in hooks:
                hook.on_log(state)
        if config.checkpoint_every and (is_last or state.step % config.checkpoint_every == 0):
            checkpoints.write(folder, state)


@contextmanager
def bf16_forward(model: nn.Module) -> Iterator[None]:
    """Run the forward passes of ``model`` under autocast to bfloat16, and return their outputs in float32."""
    forward = model.forward
    device_type = next(model.parameters()).device.type

    @wraps(forward)
    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            outputs = forward(*args, **kwargs)
        for name, value in outputs.items():
            if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
                outputs[name] = value.float()
        return outputs

    model.forward = autocast_forward
    try:
        yield
    finally:
        del model.forward


def num_steps(num_rows: int, config: TrainerConfig) -> int:
    """Return the optimizer steps of a whole run."""
    return math.ceil(config.epochs * _steps_per_epoch(num_rows, config))


def _steps_per_epoch(num_rows: int, config: TrainerConfig) -> int:
    return math.ceil(num_rows / (config.rows_per_pass * config.passes_per_step))


def _pass_indices(order: list[int], step_of_epoch: int, config: TrainerConfig) -> list[list[int]]:
    """Return the row indices of each pass of a step. In the last step of an epoch there may be fewer."""
    rows_per_step = config.rows_per_pass * config.passes_per_step
    indices = order[step_of_epoch * rows_per_step : (step_of_epoch + 1) * rows_per_step]
    return [indices[start : start + config.rows_per_pass] for start in range(0, len(indices), config.rows_per_pass)]


def _set_random_state_of_epoch(checkpoint: checkpoints.Checkpoint | None, step_of_epoch: int) -> None:
    """Give the random generators the state that an uninterrupted run has before this step.

    A DataLoader draws a seed for its workers at the start of each epoch; this draw keeps later random numbers (dropout)
    equal to those of runs with one.
    """
    if checkpoint is not None and step_of_epoch == 0:
        checkpoint.restore_random()
    torch.empty((), dtype=torch.int64).random_()
    if checkpoint is not None and step_of_epoch > 0:
        checkpoint.restore_random()


def _diverged(loss: Tensor, state: TrainState, folder: Path) -> TrainingDiverged:
    """Discard the checkpoint of the present values, which gave this loss, and return the error to raise."""
    checkpoints.discard(folder, state.step)
    last_good = checkpoints.latest(folder)
    return TrainingDiverged(
        f"the loss is {loss.item()} at step {state.step + 1} "
        f"(learning rate {state.optimizer.param_groups[0]['lr']:.3g}): try a lower learning rate"
        + (f"; the last good checkpoint is {last_good}" if last_good else "")
    )
