"""The loop of ``tune-many``: entries first, then entries and gates, then entries with frozen gates.

1. Warm-up: each batch passes twice, once with the shared entries in all rows and once with those of its task, so that
   a gate chooses between two trained changes. (InterroGate starts from networks trained for a single task each.)
2. Gates: each batch passes once, through the rows that the gates choose. The loss has a hinge on the cost of one pass
   for all tasks. Block gates move only while the cost is above the target, and the one with the largest gradient moves
   most: with steps of one size all would close at once, and the tasks would share more than the target asks for.
3. Frozen: gates are fixed, and closed as far as the target needs it. The entries train on.

Checkpoints are those of :mod:`taskedge.training.checkpoint`. A run that continues from one ends with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.errors import TrainingDiverged
from taskedge.training import checkpoint
from taskedge.training.callbacks import TrainState
from taskedge.training.data_order import epoch_order
from taskedge.training.many.gated_model import GatedModel, Mode
from taskedge.training.optimizer import learning_rate_factor

WARMUP_SHARE, GATE_SHARE = 0.4, 0.4
"""Shares of the steps of the first two phases."""
RATE_WARMUP = 0.06
CLIP = 1.0
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TaskData:
    """The part of one task that the loop needs.

    Attributes:
        name: for messages.
        model: the base with the task's head.
        rows: encoded rows.
        collate: makes a batch.
        head: its fully trained parameters.
    """

    name: str
    model: nn.Module
    rows: Sequence[Any]
    collate: Callable[[list[Any]], Batch]
    head: Sequence[nn.Parameter]


@dataclass(frozen=True)
class ManyTrained:
    """The outcome of the loop.

    Attributes:
        steps: optimizer steps.
        losses: mean loss of each task over the last phase.
        closed: block gates that were closed to meet the target, after their training.
    """

    steps: int
    losses: tuple[float, ...]
    closed: int


class _Trained(nn.Module):
    """All that trains: entries, gates and heads, by one name each."""

    def __init__(self, changes: GatedModel, heads: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.changes = changes
        self.heads = nn.ParameterList(heads)


def num_steps(tasks: Sequence[TaskData], epochs: float, batch_size: int) -> int:
    """Return the optimizer steps of a run, three at least: one for each phase."""
    longest = max(len(task.rows) for task in tasks)
    return max(3, math.ceil(epochs * math.ceil(longest / batch_size)))


def train_many(
    model: GatedModel,
    tasks: Sequence[TaskData],
    *,
    epochs: float,
    lr: float,
    gate_lr: float,
    flops_weight: float,
    target: float | None,
    batch_size: int,
    seed: int,
    on_step: Callable[[int], object] = lambda _: None,
    folder: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 25,
) -> ManyTrained:
    """Train entries, heads and gates of all tasks; the gates are frozen at the end.

    Every step sees one batch of each task. A step counts the mean of the tasks' losses. Smaller data are repeated.

    Args:
        model: the changes, whose hooks are on the modules that the tasks' models share.
        tasks: in the order of the model's tasks.
        epochs: passes over the largest data.
        lr: peak learning rate of entries and heads.
        gate_lr: constant learning rate of the gates.
        flops_weight: weight of the hinge.
        target: largest cost of one pass for all tasks; None: block gates stay open.
        batch_size: rows of each task in a step.
        seed: of the order of rows and of dropout.
        on_step: called with the number of finished steps since the last call.
        folder: for checkpoints; None: there are none.
        resume: continue from the newest checkpoint in ``folder``, if there is one.
        checkpoint_every: steps between checkpoints.

    Raises:
        InputError: a checkpoint is damaged or cannot be written.
        TrainingDiverged: a loss is not a finite number; the message names the task.
    """
    torch.manual_seed(seed)
    steps = num_steps(tasks, epochs, batch_size)
    warm = max(1, round(WARMUP_SHARE * steps))
    frozen_from = min(steps - 1, warm + max(1, round(GATE_SHARE * steps)))
    heads = list({id(parameter): parameter for task in tasks for parameter in task.head}.values())
    trained = [*model.value_parameters, *heads]
    groups = [{"params": trained, "lr": lr}, {"params": model.row_logits, "lr": gate_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)  # gates have no gradient, and stay, in phases 1 and 3
    losses: list[list[float]] = [[] for _ in tasks]
    state = TrainState(_Trained(model, heads), optimizer, steps, log=[{"losses": losses, "closed": 0}])
    newest = checkpoint.latest(folder) if resume and folder is not None else None
    if newest is not None:
        stored = checkpoint.Checkpoint(newest)
        stored.restore(state)
        losses = state.log[0]["losses"]
        on_step(state.step)
    batches = [_batches(task, batch_size, seed, state.step) for task in tasks]
    model.present.frozen = state.step > frozen_from
    for task in tasks:
        task.model.train()
    if newest is not None:
        stored.restore_random()
    for step in range(state.step, steps):
        if step == frozen_from:
            state.log[0]["closed"] = _freeze(model, target)
        gated = warm <= step < frozen_from
        modes: tuple[Mode, ...] = ("shared", "own") if step < warm else ("gated",)
        optimizer.zero_grad(set_to_none=True)
        model.block_logits.grad = None
        for index, task in enumerate(tasks):
            batch = next(batches[index])
            for mode in modes:
                model.present.task, model.present.mode = index, mode
                loss = task.model(**batch).loss
                if not bool(loss.isfinite()):
                    raise TrainingDiverged(
                        f"{task.name}: the loss is {loss.item()} in step {step + 1}: try a smaller --lr"
                    )
                (loss / (len(tasks) * len(modes))).backward()
                if step >= frozen_from:
                    losses[index].append(float(loss.detach()))
        if gated and target is not None:
            _move_block_gates(model, flops_weight, target, gate_lr)
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.param_groups[0]["lr"] = lr * learning_rate_factor(step, steps, RATE_WARMUP)
        optimizer.step()
        state.step = step + 1
        if folder is not None and (state.step % checkpoint_every == 0 or state.step == steps):
            checkpoint.write(folder, state)
        on_step(1)
    model.present.mode = "gated"
    for gate in model.gate_parameters:
        gate.requires_grad_(False)
    for task in tasks:
        task.model.eval()
    return ManyTrained(steps, tuple(sum(each) / len(each) for each in losses), state.log[0]["closed"])


def _move_block_gates(model: GatedModel, weight: float, target: float, step: float) -> None:
    """Move block gates down the gradient of the loss and the hinge, by ``step`` at most, if the cost is too high."""
    hinge = model.cost.hinge(model.block_logits, target)
    if float(hinge.detach()) == 0:
        return
    (weight * hinge).backward()  # type: ignore[no-untyped-call]
    gradient = model.block_logits.grad
    largest = 0.0 if gradient is None else float(gradient.abs().max())
    if gradient is not None and largest > 0:
        with torch.no_grad():
            model.block_logits.sub_(step / largest * gradient)


def _freeze(model: GatedModel, target: float | None) -> int:
    """Fix all gates; return how many block gates the target closed."""
    closed = 0
    with torch.no_grad():
        if target is not None:
            gates, closed = model.cost.closed_to(model.block_logits, target)
            model.block_logits[~gates & (model.block_logits > 0)] = -1.0
    model.present.frozen = True
    return closed


def _batches(task: TaskData, size: int, seed: int, skipped: int) -> Iterator[Batch]:
    """Yield batches of a task for ever, each pass in an order of its own, without the first ones."""
    epoch, first = divmod(skipped, math.ceil(len(task.rows) / size))
    while True:
        order = epoch_order(len(task.rows), seed, epoch)
        for start in range(first * size, len(order), size):
            yield task.collate([task.rows[index] for index in order[start : start + size]])
        epoch, first = epoch + 1, 0
