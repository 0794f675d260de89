"""A device's own part: its model, kept warm, and its rows, which never leave it. Knows nothing of messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.linears import candidates, head_parameters
from taskedge.cooperation.device.sampling import permutation, rows_of_round
from taskedge.cooperation.protocol.trained_blocks import TrainedBlocks, trained_blocks
from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.install import fuse, install, installation
from taskedge.forms.sparse import FreeEntries, sparse_layers
from taskedge.selection.statistics import LinearStatistics, measure, run
from taskedge.selection.support import Support
from taskedge.training.seeds import derive

Row = Any
Collate = Callable[[list[Row]], Any]


class Expired(TaskEdgeError):
    """The task's time is over: what it would still give is of no use."""


@dataclass(frozen=True)
class Job:
    """What to train in one round, and how."""

    blocks: tuple[int, ...]
    """Depths, 0 for the head."""
    round: int
    seed: int
    """The device's: of the order of its rows, and of dropout."""
    batch_size: int
    accumulate: int
    local_steps: int
    optimiser: str
    lr: float
    head_lr: float
    weight_decay: float
    idle: tuple[int, ...] = ()
    """Places, among the trained names of these blocks in their order, of those that do not train in this round."""

    def facts(self) -> dict[str, Any]:
        """As JSON-able facts; ``Job(**facts)`` reads them."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """What training gave: float32 tensors by name (gradients, or new values), tokens seen, and the mean loss."""

    tensors: dict[str, Tensor]
    tokens: int
    loss: float


class LocalTraining:
    """A model with a support installed, and the rows that it trains on.

    Args:
        model: the base with a head; left as it is until a support is installed.
        rows: the device's examples; ``collate`` makes of a list of them what the model takes, with labels.
        whole: parameters that train whole; None: the model's head.

    One training runs in a process at a time: dropout draws from torch's global generator.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[Row], collate: Collate, whole: Collection[str] | None = None
    ) -> None:
        if not len(rows):
            raise InputError("this device has no rows to train on")
        self.model, self.rows, self.collate = model, rows, collate
        self.whole = list(head_parameters(model) if whole is None else whole)
        self.blocks = TrainedBlocks(((),))
        self._parameters: dict[str, nn.Parameter] = {}
        self._values: dict[str, Tensor] = {}

    def statistics(
        self, needs: Collection[str], batches: int, batch_size: int, seed: int
    ) -> dict[str, LinearStatistics]:
        """Statistics of the base over the first batches of the rows in a seeded order."""
        self._uninstall()
        order = permutation(len(self.rows), seed)[: batches * batch_size]
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        given = (self.collate([self.rows[place] for place in part]) for part in parts)
        return measure(self.model, candidates(self.model), given, needs)

    def install(self, support: Support, step: str, sizes: Sequence[int] | None, head: Mapping[str, Tensor]) -> None:
        """Makes the model train the support from the base on; ``head`` is where what trains whole begins.

        Raises:
            InputError: the support or the head is not one for this model.
        """
        self._uninstall()
        install(self.model, support, trainable=self.whole, step=step)
        self.blocks = trained_blocks(self.model, sizes)
        known = self.blocks.block_of()
        self._parameters = {name: p for name, p in self.model.named_parameters() if name in known}
        self._values = {name: p.detach().cpu().clone() for name, p in self._parameters.items()}
        self.receive(head)

    def receive(self, values: Mapping[str, Tensor]) -> None:
        """Takes up the coordinator's values of some trained parameters.

        Raises:
            InputError: a name or a shape that is none of the model's.
        """
        for name, value in values.items():
            mine = self._values.get(name)
            if mine is None or mine.shape != value.shape or not value.is_floating_point():
                raise InputError(f"values of {name!r} {list(value.shape)}, which this device does not train")
        self._values.update({name: value.clone() for name, value in values.items()})
        self._write(values)

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The coordinator's values as this device holds them, float32 on the CPU."""
        return self._values

    def train(self, job: Job, check: Callable[[], None] = lambda: None) -> Trained:
        """Trains the job's blocks; the model holds the coordinator's values again afterwards.

        Autograd goes no deeper than the deepest of the blocks, and no entry of another block, or of an idle linear,
        gets a gradient.

        Args:
            check: called before every batch; what it raises ends the training.

        Raises:
            InputError: a block or a name that the model has not, or nothing to train.
        """
        names = self._names(job)
        rows = rows_of_round(len(self.rows), job.batch_size * job.accumulate * job.local_steps, job.round, job.seed)
        batches = [rows[start : start + job.batch_size] for start in range(0, len(rows), job.batch_size)]
        was_training = self.model.training
        self.model.train()
        try:
            with torch.random.fork_rng(devices=[]), self._only(names) as trained:
                torch.manual_seed(derive(job.seed, job.round))
                return self._train(job, trained, batches, check)
        finally:
            self.model.train(was_training)
            if job.local_steps > 1:
                self._write({name: self._values[name] for name in names})

    def _train(
        self, job: Job, trained: dict[str, nn.Parameter], batches: list[list[int]], check: Callable[[], None]
    ) -> Trained:
        optimiser = self._optimiser(job, trained) if job.local_steps > 1 else None
        tokens, losses = 0, 0.0
        for number, part in enumerate(batches, start=1):
            check()
            batch = self.collate([self.rows[place] for place in part])
            loss = loss_of(run(self.model, batch))
            (loss / job.accumulate).backward()  # type: ignore[no-untyped-call]
            tokens += tokens_in(batch)
            losses += float(loss.detach())
            if optimiser is not None and number % job.accumulate == 0:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        if optimiser is not None:
            tensors = {name: parameter.detach() for name, parameter in trained.items()}
        else:
            tensors = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
        kept = {name: tensor.to(device="cpu", dtype=torch.float32, copy=True) for name, tensor in tensors.items()}
        return Trained(kept, tokens, losses / len(batches))

    def _optimiser(self, job: Job, trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh one in every round, so that a device that comes back is like one that stayed."""
        entries = [parameter for name, parameter in trained.items() if name not in self.whole]
        head = [parameter for name, parameter in trained.items() if name in self.whole]
        groups = [{"params": entries, "lr": job.lr}, {"params": head, "lr": job.head_lr}]
        if job.optimiser == "adamw":
            return torch.optim.AdamW(groups, weight_decay=job.weight_decay)
        return torch.optim.SGD(groups, weight_decay=job.weight_decay)

    def _names(self, job: Job) -> list[str]:
        wrong = [block for block in job.blocks if not 0 <= block <= len(self.blocks)]
        names = [] if wrong else self.blocks.of(job.blocks)
        idle = set(job.idle)
        if not idle <= set(range(len(names))) or len(idle) == len(names):
            raise InputError(
                f"nothing to train in blocks {list(job.blocks)} but for {len(idle)} idle names: "
                f"the model has {len(self.blocks)} blocks"
            )
        return [name for place, name in enumerate(names) if place not in idle]

    @contextmanager
    def _only(self, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
        """Only these require a gradient inside; afterwards none does, and none holds one."""
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
        """The base again, bit for bit."""
        if installation(self.model) is None:
            return
        with torch.no_grad():
            for layer in sparse_layers(self.model).values():
                cast(FreeEntries, layer.entries).offsets.zero_()
        fuse(self.model)
        self._parameters, self._values = {}, {}


def loss_of(output: Any) -> Tensor:
    """The loss in a model's output.

    Raises:
        InputError: it holds none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("the model gave no loss: put labels into the rows")
    return loss


def tokens_in(batch: Any) -> int:
    """Positions of a batch that count: those its attention mask keeps, else all ids, else one per row."""
    if isinstance(batch, Mapping):
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return int(mask.sum())
        if isinstance(ids, Tensor):
            return ids.numel()
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(first)
