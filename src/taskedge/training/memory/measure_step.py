"""Measurement of training steps on a run's own model, with entries installed as the run will install them.

Everything that a measurement changes is restored, so the run that follows has the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.evaluation import modes_restored
from taskedge.backbone.linear_cross_entropy import chunk_limit
from taskedge.forms.kernels import force_kernel
from taskedge.forms.recompute import recomputing
from taskedge.profiling.process_memory import peak_bytes, reset_peak, resident_bytes, trim_heap
from taskedge.profiling.tensor_memory import LiveBytes, storage_bytes
from taskedge.training.memory.extrapolate import Timing
from taskedge.training.memory.mezo import Mezo, parameter_groups
from taskedge.training.memory.rotate import Rotation
from taskedge.training.run import Run
from taskedge.training.tasks import Batch, Row
from taskedge.training.trainer_config import TrainerConfig

TIMED_PASSES = 3

LONG_PASS_SECONDS = 1.0
"""A pass that takes longer is timed once only."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PassMemory:
    """Bytes that one pass of rows, forward and backward, adds to what was there before.

    Attributes:
        saved: live bytes at the end of the forward pass.
        peak: peak of live bytes.
        excess: bytes by which the resident set rose beyond ``peak``.
    """

    saved: int
    peak: int
    excess: int


class SampleBatches:
    """Batches of chosen sizes from a run's training rows.

    Attributes:
        lengths: tokens of each row; 1 for an image, since all images have one size.
    """

    def __init__(self, run: Run) -> None:
        self._rows, self._collate = run.rows, run.collate
        self.lengths = [row_length(row) for row in self._rows]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    def batch(self, num_rows: int, length: float) -> Batch:
        """Return a batch whose longest row is the one nearest to ``length`` tokens; the other rows are padded to it."""
        first = min(self._rows, key=lambda row: abs(row_length(row) - length))
        shorter = sorted((row for row in self._rows if row_length(row) <= row_length(first)), key=row_length)
        middle = shorter[len(shorter) // 2]
        return self._collate([first, *[middle] * (num_rows - 1)])


def row_length(row: Row) -> int:
    """Return the tokens of a row, with those of its target; 1 for an image."""
    return len(row.get("input_ids", "1")) + int(row.get("target_tokens", 0))


class MeasurementSession:
    """A run with installed entries, until it is closed.

    Attributes:
        state: bytes that stay for the whole run: entries with their positions, copies of the head, gradients and
            optimizer state.
        head: the part of ``state`` that belongs to fully trained parameters.
    """

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run = run
        self.config: TrainerConfig = run.config.trainer_config()
        full_names = set(run.full_names)
        full_parameters = {id(p) for name, p in run.base.model.named_parameters() if name in full_names}
        with LiveBytes() as live:
            self._installed = run.install(run.select([batch]))
            self.model = self._installed.model
            self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self._optimizer = torch.optim.AdamW(self.trained, lr=0.0)
            self._zero_grad()
            if self.config.optimizer == "adamw":
                self._optimizer.step()
        self._backup = [parameter.detach().clone() for parameter in self.trained]
        self.state = live.live
        head_bytes = storage_bytes(parameter for parameter in self.trained if id(parameter) in full_parameters)
        self.head = min(self.state, 3 * head_bytes if self.config.optimizer == "adamw" else 0)

    @property
    def backup_bytes(self) -> int:
        """Bytes of the copies that restore the model."""
        return storage_bytes(self._backup)

    def measure_memory(self, batch: Batch, changes: Mapping[str, Any]) -> PassMemory:
        """Run a batch forward and backward, and count live bytes.

        The loss of a causal language model takes its chunks one token at a time here; ``LossBytes`` counts the rest.

        Args:
            batch: rows of the pass.
            changes: settings of the step that differ from the run's, by name.
        """
        with chunk_limit(1):
            self._run_step(batch, changes, deepest=True)  # what libraries allocate on first use is not part of a pass
        reset_peak(_CPU, collect=False)
        before = resident_bytes()
        saved: list[int] = []
        with LiveBytes() as live, chunk_limit(1):
            self._run_step(batch, changes, deepest=True, on_forward_end=lambda: saved.append(live.live))
        risen = peak_bytes(_CPU) - before
        return PassMemory(saved=max(saved), peak=live.peak, excess=max(0, risen - live.peak))

    def measure_time(self, batch: Batch, changes: Mapping[str, Any]) -> Timing:
        """Time a pass over a batch. With block rotation, return the mean of the shallowest and the deepest block."""
        turns = (True, False) if self.config.rotate else (True,)
        timings = [_median_time(partial(self._run_step_and_trim, batch, changes, deepest)) for deepest in turns]
        return Timing(
            wall=sum(timing.wall for timing in timings) / len(timings),
            cpu=sum(timing.cpu for timing in timings) / len(timings),
        )

    def measure_optimizer_time(self) -> Timing:
        """Time gradient clipping and the optimizer, which run once a step."""
        if self.config.optimizer == "mezo":
            return Timing(0.0, 0.0)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self._optimizer.step()

        self._zero_grad()
        return _median_time(step)

    def close(self) -> None:
        """Remove the entries and restore the model."""
        self._restore()
        self._optimizer.state.clear()
        self.model.zero_grad(set_to_none=True)
        self._installed.fuse()

    def _run_step_and_trim(self, batch: Batch, changes: Mapping[str, Any], deepest: bool) -> None:
        self._run_step(batch, changes, deepest=deepest)
        trim_heap(collect=False)  # as a run with a budget does

    def _run_step(
        self,
        batch: Batch,
        changes: Mapping[str, Any],
        *,
        deepest: bool,
        on_forward_end: Callable[[], None] = lambda: None,
    ) -> None:
        config = self.config
        low_memory = config.low_memory or bool(changes)
        rotation = Rotation(self.model, config.rotate) if config.rotate else None
        autocast = torch.autocast("cpu", dtype=torch.bfloat16) if config.bf16 else nullcontext()
        recompute = changes.get("recompute", config.recompute)
        try:
            with force_kernel("gather") if low_memory else nullcontext(), recomputing(self.model, recompute):
                if rotation is not None:
                    rotation.begin((len(rotation.blocks) - 1) * config.rotate if deepest else 0)
                if config.optimizer == "mezo":
                    self.model.eval()
                    mezo = Mezo(parameter_groups(self.model, self.run.full_names), lr=0.0)
                    mezo.probe(lambda: _loss(self.model, batch, autocast))
                    on_forward_end()
                    return
                loss = _loss(self.model.train(), batch, autocast)
                on_forward_end()
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            if rotation is not None:
                rotation.end()
            self._restore()

    def _zero_grad(self) -> None:
        """Set gradients to zero rather than None: from the second pass of a step on they exist."""
        if self.config.optimizer == "mezo":
            return
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, backup in zip(self.trained, self._backup, strict=True):
                parameter.copy_(backup)
                if parameter.grad is not None:
                    parameter.grad.zero_()


@contextmanager
def model_restored(model: nn.Module) -> Iterator[None]:
    """Restore modes, buffers, ``requires_grad`` and the random number generator of torch on exit."""
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with torch.random.fork_rng(devices=[]), modes_restored(model):
        try:
            yield
        finally:
            for parameter, requires_grad in required.items():
                parameter.requires_grad_(requires_grad)
            with torch.no_grad():
                for buffer, before in buffers.items():
                    buffer.copy_(before)


def _loss(model: nn.Module, batch: Batch, autocast: Any) -> Tensor:
    with autocast:
        loss: Tensor = model(**batch).loss
    return loss


def _median_time(work: Callable[[], object]) -> Timing:
    """Time a few passes after one that warms up, and return the medians."""
    work()
    walls: list[float] = []
    cpus: list[float] = []
    while len(walls) < TIMED_PASSES:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if walls[-1] > LONG_PASS_SECONDS:
            break
    return Timing(median(walls), median(cpus))
