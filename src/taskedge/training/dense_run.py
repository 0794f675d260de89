"""A short run that trains all weights, for the selection rule ``change``; the model is rewound to the same bits.

It needs what full fine-tuning needs: gradients of all weights, the optimizer's state, all activations, and in addition
a copy of the weights to return to. What that is, in bytes and seconds, is measured and logged before the run.

Source: LT-SFT (arXiv 2110.07560), LoTA (arXiv 2406.16797).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.backbone.evaluation import modes_restored
from taskedge.backbone.layers import Linear
from taskedge.errors import InputError, TrainingDiverged
from taskedge.forms.install import fuse, install
from taskedge.forms.recompute import recomputing
from taskedge.profiling.byte_size import format_bytes
from taskedge.selection.disk_accumulator import DiskAccumulator
from taskedge.selection.statistics import INPUTS, Statistics, measure
from taskedge.selection.support import Support
from taskedge.training.guard import guarded
from taskedge.training.passes_loss import PassesLoss
from taskedge.training.trainer import Batch, Row, bf16_forward, num_steps, train
from taskedge.training.trainer_config import TrainerConfig

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class DenseRunCost:
    """Needs of a dense run, before it begins.

    Attributes:
        weights: numbers that train: the weights of the linears, and the head.
        linears: how many linears.
        steps: optimizer steps.
        seconds: measured time of one step's passes, times the steps; the optimizer comes on top.
        state_bytes: gradients, AdamW's two averages, the copy to return to, and in half precision the fp32 masters.
        activation_bytes: what the backward pass of the first batch keeps.
        disk_bytes: temporary file with the changes.
    """

    weights: int
    linears: int
    steps: int
    seconds: float
    state_bytes: int
    activation_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        """Return a line for people."""
        return (
            f"the dense run trains {self.weights:,} weights of {self.linears} linears and the head: {self.steps:,} "
            f"steps, about {self.seconds:.0f} s without the optimizer's own time; above the base it needs "
            f"{format_bytes(self.state_bytes)} for gradients, optimizer and a copy of the weights, "
            f"{format_bytes(self.activation_bytes)} for activations, and {format_bytes(self.disk_bytes)} on the disk"
        )


def measure_changes(
    model: nn.Module,
    batches: Iterable[Any],
    rows: Sequence[Row],
    collate: Callable[[list[Row]], Batch],
    config: TrainerConfig,
    *,
    linears: Sequence[str] | None = None,
    depth: int | None = None,
    needs: Collection[str] = (),
    head: Collection[str] = (),
    log: Callable[[str], None] = print,
) -> Statistics:
    """Train all weights that may carry entries and the head, note what changed, and rewind the model.

    Args:
        model: returns an output with ``loss``; nothing is installed on it.
        batches: calibration data, for the norms of the inputs and which linears share one.
        rows: training examples.
        collate: makes a batch of a list of them.
        config: of the dense run. It needs a far lower rate than entries do, such as 1e-4, and ``head_lr`` for the head.
        linears, depth: as for :func:`taskedge.select`.
        needs: further statistics to measure (:mod:`taskedge.selection.statistics`), such as those of a column score.
        head: names of parameters that train besides. They are rewound as well.
        log: receives the cost before the run, and a line after it.

    Returns:
        Statistics for ``taskedge.select(model, statistics=..., rule="change")``; use them as a context.

    Raises:
        InputError: a weight is read-only; the temporary folder cannot hold the changes (4 bytes a weight).
        TrainingDiverged: the loss is not a finite number. The model is rewound then too.
    """
    layers = candidates(model, linears) if depth is None else candidates_within(model, depth, linears)
    for name, layer in layers.items():
        if layer.is_read_only:
            raise InputError(
                f"the weight of linear {name!r} is read-only (coded or mapped from a file), so it cannot train in a "
                "dense run: choose another rule, or load the base with weight storage 'resident'"
            )
    statistics = measure(model, layers, batches, {INPUTS, *needs})
    with ExitStack() as on_error:
        on_error.callback(statistics.close)
        changes = _dense_run(model, layers, rows, collate, config, head, log)
        on_error.pop_all()
    for name, layer in layers.items():
        statistics[name].read_change = partial(_read, changes, name, layer.device)
    return statistics


def _dense_run(
    model: nn.Module,
    linears: Mapping[str, Linear],
    rows: Sequence[Row],
    collate: Callable[[list[Row]], Batch],
    config: TrainerConfig,
    head: Collection[str],
    log: Callable[[str], None],
) -> DiskAccumulator:
    """Return what a dense run changes in each linear; the model is the same afterwards."""
    config = config.model_copy(update={"optimizer": "adamw", "rotate": 0, "regrow": 0, "checkpoint_every": 0})
    names = list(dict.fromkeys([*(linear.parameter for linear in linears.values()), *head]))
    changes = DiskAccumulator({name: linear.shape for name, linear in linears.items()})
    for name, linear in linears.items():
        changes.add(name, -linear.weight)
    begin = time.perf_counter()
    with _rewound(model, names), modes_restored(model):
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        install(model, Support({}, num_parameters, full_parameters=tuple(names)), trainable=[])
        try:
            log(str(_cost(model, names, linears, rows, collate, config)))
            with tempfile.TemporaryDirectory() as folder:
                result = train(model, rows, collate, config, Path(folder), progress=False, head=head)
            for name, linear in linears.items():
                changes.add(name, linear.weight)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"in the dense run of the rule 'change', {error}") from None
        finally:
            model.zero_grad()
            fuse(model)
    log(
        f"the dense run took {time.perf_counter() - begin:.0f} s (mean loss {result.loss:.3f}); all weights are "
        "those of the base again"
    )
    return changes


def _read(changes: DiskAccumulator, name: str, device: torch.device) -> Tensor:
    return changes.read(name).to(device)


@contextmanager
def _rewound(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Give the named parameters and all buffers their values back at the end."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    before = {name: parameters[name].detach().clone() for name in names}
    buffers_before = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
            for name, value in buffers_before.items():
                buffers[name].copy_(value)


def _cost(
    model: nn.Module,
    names: Collection[str],
    linears: Mapping[str, Linear],
    rows: Sequence[Row],
    collate: Callable[[list[Row]], Batch],
    config: TrainerConfig,
) -> DenseRunCost:
    """Run one forward and backward pass twice: the first counts bytes, the second takes the time."""
    parameters = dict(model.named_parameters())
    indices = list(range(min(config.rows_per_pass, len(rows))))
    batch = collate([rows[index] for index in indices])
    kept: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in parameters.values()}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    seconds = 0.0
    loss_of_pass = PassesLoss(model)
    model.train()
    with (
        bf16_forward(model) if config.bf16 else nullcontext(),
        recomputing(model, config.recompute),
        guarded(model, rows, indices, collate),
    ):
        for counting in (True, False):
            begin = time.perf_counter()
            loss_of_pass.begin_step([batch])
            with saved_tensors_hooks(pack, lambda tensor: tensor) if counting else nullcontext():
                loss = loss_of_pass(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            seconds = time.perf_counter() - begin
            model.zero_grad()
    trained = [parameters[name] for name in names]
    steps = num_steps(len(rows), config)
    return DenseRunCost(
        weights=sum(parameter.numel() for parameter in trained),
        linears=len(linears),
        steps=steps,
        seconds=seconds * steps * config.passes_per_step,
        state_bytes=sum(4 * parameter.numel() * parameter.element_size() for parameter in trained),
        activation_bytes=sum(kept.values()),
        disk_bytes=sum(_FLOAT_BYTES * linear.shape[0] * linear.shape[1] for linear in linears.values()),
    )
