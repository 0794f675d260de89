"""A device's local training: its model, kept loaded, and its rows, which stay there. Independent of messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.candidates import candidates, head_parameters
from taskedge.backbone.evaluation import loss_of, run_batch
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.scheduling.trained_blocks import TrainedBlocks, trained_blocks
from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.install import fuse, install, installation
from taskedge.forms.sparse import FreeEntries, sparse_layers
from taskedge.selection.statistics import LinearStatistics, measure
from taskedge.selection.support import Support
from taskedge.training.data_order import derive_seed, random_order

MIN_ROWS = 8
"""Rows of a step below which a device refuses, unless its owner sets another floor."""
Row = Any
Collate = Callable[[list[Row]], Any]


class TaskExpired(TaskEdgeError):
    """The time of a task is over: its answer would not be used."""


@dataclass(frozen=True)
class LocalResult:
    """The result of one training."""

    tensors: dict[str, Tensor]
    """float32 by name: gradients, or new values."""
    tokens: int
    loss: float
    """Mean over the batches."""


class LocalTraining:
    """A model with a support installed, and the rows that it trains on.

    Only one training runs in a process at a time, since dropout draws from torch's global generator.

    Args:
        model: The base with a head. It is unchanged until a support is installed.
        rows: The device's examples.
        collate: Makes a batch with labels, as the model takes it, from a list of rows.
        full_parameters: Parameters that are trained in full; None: the model's head.
        min_rows: Fewest rows that a step or statistics may be over, since a gradient of few rows tells what they are.

    Raises:
        InputError: There are fewer rows than ``min_rows``, or none.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        collate: Collate,
        full_parameters: Collection[str] | None = None,
        *,
        min_rows: int = MIN_ROWS,
    ) -> None:
        if not len(rows):
            raise InputError("this device has no rows to train on")
        if len(rows) < min_rows:
            raise InputError(
                f"this device has {len(rows)} rows, and its floor is {min_rows} a step: add rows, or set a lower floor "
                "(--min-rows) if what answers on few rows reveal may be known"
            )
        self.min_rows = min_rows
        self.model, self.rows, self.collate = model, rows, collate
        self.full_parameters = list(head_parameters(model) if full_parameters is None else full_parameters)
        self.blocks = TrainedBlocks(((),))
        self._parameters: dict[str, nn.Parameter] = {}
        self._values: dict[str, Tensor] = {}

    def statistics(
        self, needs: Collection[str], batches: int, batch_size: int, seed: int
    ) -> dict[str, LinearStatistics]:
        """Return statistics of the base over the first batches of the rows in the random order of ``seed``.

        An installed support is removed.

        Raises:
            InputError: These are fewer rows than the device's floor.
        """
        self._check_floor(batches * batch_size, "statistics")
        self._uninstall()
        order = random_order(len(self.rows), seed)[: batches * batch_size]
        index_batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        collated = (self.collate([self.rows[index] for index in indices]) for indices in index_batches)
        return measure(self.model, candidates(self.model), collated, needs)

    def install(self, support: Support, step: str, sizes: Sequence[int] | None, head: Mapping[str, Tensor]) -> None:
        """Install the support on the base, and set the full parameters to the values in ``head``.

        Raises:
            InputError: The support or the head does not fit this model.
        """
        self._uninstall()
        exponent = support.settings.get("step_exponent", 0.0)  # coordinators before 0.75 became the default name none
        install(self.model, support, trainable=self.full_parameters, step=step, step_exponent=exponent)
        self.blocks = trained_blocks(self.model, sizes)
        trained_names = self.blocks.block_of()
        self._parameters = {name: p for name, p in self.model.named_parameters() if name in trained_names}
        self._values = {name: p.detach().cpu().clone() for name, p in self._parameters.items()}
        self.receive(head)

    def receive(self, values: Mapping[str, Tensor]) -> None:
        """Take over the coordinator's values of some trained parameters.

        Raises:
            InputError: The model trains no parameter of that name and shape.
        """
        for name, value in values.items():
            own = self._values.get(name)
            if own is None or own.shape != value.shape or not value.is_floating_point():
                raise InputError(f"values of {name!r} {list(value.shape)}, which this device does not train")
        self._values.update({name: value.clone() for name, value in values.items()})
        self._write(values)

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The coordinator's values as this device has them, float32 on the CPU."""
        return self._values

    def train(self, task: RoundTask, recipe: TrainingRecipe, check: Callable[[], None] = lambda: None) -> LocalResult:
        """Train the task's blocks. Afterwards the model has the coordinator's values again.

        Autograd goes no deeper than the deepest of the blocks. Entries of other blocks and of idle linears get no
        gradient.

        Args:
            task: Blocks, idle names, seed and batches per step.
            recipe: How to train in this round.
            check: Called before every batch. What it raises ends the training.

        Raises:
            InputError: The model has no such block or name, or there is nothing to train, or a step has fewer rows than
                the device's floor.
        """
        self._check_floor(recipe.batch_size * task.accumulate, "a step")
        names = self._trained_names(task)
        num_rows = recipe.batch_size * task.accumulate * recipe.local_steps
        indices = rows_of_round(len(self.rows), num_rows, recipe.round, task.seed)
        batches = [indices[start : start + recipe.batch_size] for start in range(0, len(indices), recipe.batch_size)]
        was_training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng(devices=[]), self._only_gradients_of(names) as parameters:
                torch.manual_seed(derive_seed(task.seed, recipe.round))
                return self._train(task, recipe, parameters, batches, check)
        finally:
            self.model.train(was_training)
            if recipe.local_steps > 1:
                self._write({name: self._values[name] for name in names})

    def _train(
        self,
        task: RoundTask,
        recipe: TrainingRecipe,
        parameters: dict[str, nn.Parameter],
        batches: list[list[int]],
        check: Callable[[], None],
    ) -> LocalResult:
        optimizer = self._optimizer(recipe, parameters) if recipe.local_steps > 1 else None
        tokens, losses = 0, 0.0
        for number, indices in enumerate(batches, start=1):
            check()
            batch = self.collate([self.rows[index] for index in indices])
            loss = loss_of(run_batch(self.model, batch))
            (loss / task.accumulate).backward()  # type: ignore[no-untyped-call]
            tokens += tokens_in(batch)
            losses += float(loss.detach())
            if optimizer is not None and number % task.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if optimizer is not None:
            tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        else:
            tensors = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        copies = {name: tensor.to(device="cpu", dtype=torch.float32, copy=True) for name, tensor in tensors.items()}
        return LocalResult(copies, tokens, losses / len(batches))

    def _optimizer(self, recipe: TrainingRecipe, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimizer in every round, so that a device that comes back is like one that stayed."""
        entries = [parameter for name, parameter in parameters.items() if name not in self.full_parameters]
        head = [parameter for name, parameter in parameters.items() if name in self.full_parameters]
        groups = [{"params": entries, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(groups, weight_decay=recipe.weight_decay)

    @property
    def note(self) -> str:
        """The text that a device logs after each answer; empty for none."""
        return ""

    def _check_floor(self, rows: int, what: str) -> None:
        """Refuse what is over fewer rows than the owner allows."""
        if rows < self.min_rows:
            raise InputError(
                f"{what} over {rows} rows is refused: this device's owner allows no fewer than {self.min_rows} "
                "(--min-rows there); use larger batches"
            )

    def _trained_names(self, task: RoundTask) -> list[str]:
        names = []
        if all(0 <= block <= len(self.blocks) for block in task.blocks):
            names = self.blocks.names_in(task.blocks)
        idle = set(task.idle)
        if not idle <= set(range(len(names))) or len(idle) == len(names):
            raise InputError(
                f"nothing to train in blocks {list(task.blocks)} except {len(idle)} idle names: "
                f"the model has {len(self.blocks)} blocks"
            )
        return [name for index, name in enumerate(names) if index not in idle]

    @contextmanager
    def _only_gradients_of(self, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
        """Only the parameters in ``names`` require a gradient inside. Afterwards none does, and none has one."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        chosen = {name: self._parameters[name] for name in names}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        try:
            yield chosen
        finally:
            for parameter in chosen.values():
                parameter.grad = None
                parameter.requires_grad_(False)

    def _write(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)

    def _uninstall(self) -> None:
        """Restore the base, bit for bit."""
        if installation(self.model) is None:
            return
        with torch.no_grad():
            for layer in sparse_layers(self.model).values():
                cast(FreeEntries, layer.entries).offsets.zero_()
        fuse(self.model)
        self._parameters, self._values = {}, {}


def tokens_in(batch: Any) -> int:
    """Return the positions of a batch that count: those in its attention mask, else all ids, else one per row."""
    if isinstance(batch, Mapping):
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return int(mask.sum())
        if isinstance(ids, Tensor):
            return ids.numel()
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(first)


def rows_of_round(num_rows: int, wanted: int, round_number: int, seed: int) -> list[int]:
    """Return the indices of the rows that a device trains on in a round, in order.

    Rounds step through passes over the data, each in its own random order. So every row is seen once before any is seen
    twice. A round that the device misses is skipped, and changes no other round.

    Args:
        num_rows: The device's rows.
        wanted: Rows per round.
        round_number: From 1.
        seed: The device's seed.
    """
    start = (round_number - 1) * wanted
    passes = range(start // num_rows, (start + wanted - 1) // num_rows + 1)
    order = [index for number in passes for index in random_order(num_rows, derive_seed(seed, number))]
    first = start - passes[0] * num_rows
    return order[first : first + wanted]
