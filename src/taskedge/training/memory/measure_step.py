"""A run's own model, entries installed as the run will, for steps that are measured and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.forms.kernels import using
from taskedge.forms.recompute import recomputing
from taskedge.profiling.process_memory import give_back, peak_bytes, reset_peak, resident_bytes
from taskedge.profiling.tensor_memory import LiveBytes, bytes_of
from taskedge.training.memory.mezo import Mezo, parted
from taskedge.training.memory.rotate import Rotation
from taskedge.training.run import Run
from taskedge.training.tasks import Batch
from taskedge.training.trainer_config import FitSettings

CPU = torch.device("cpu")
REPEATS, LONG = 3, 1.0
"""Timed passes, and the seconds of a pass from which one will do."""


@dataclass(frozen=True)
class Pass:
    """What one pass of rows forward and backward holds beyond what was there before, in bytes."""

    saved: int
    """Alive when the forward pass has ended."""
    peak: int
    """The most that is alive."""
    excess: int
    """What the resident set rose by beyond that."""


@dataclass(frozen=True)
class Pace:
    """Seconds on the wall's clock, and of the processor."""

    wall: float
    cpu: float


class Session:
    """A run whose entries are installed, until it is left.

    Attributes:
        state: bytes that stay for the whole run: entries with their places, the head's copies, gradients, optimiser.
        head: those of them that what trains whole is the cause of.
    """

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run = run
        self.settings: FitSettings = run.settings.fit()
        whole = {id(p) for name, p in run.base.model.named_parameters() if name in set(run.whole)}
        with LiveBytes() as live:
            self.model = run.install(run.choose([batch]))
            self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self._optimiser = torch.optim.AdamW(self.trained, lr=0.0)
            self._zero()
            if self.settings.optimizer == "adamw":
                self._optimiser.step()
        self._before = [parameter.detach().clone() for parameter in self.trained]
        self.state = live.live
        of_head = bytes_of(parameter for parameter in self.trained if id(parameter) in whole)
        self.head = min(self.state, 3 * of_head if self.settings.optimizer == "adamw" else 0)

    @property
    def copies(self) -> int:
        """Bytes of what is kept to put back."""
        return bytes_of(self._before)

    def held(self, batch: Batch, loop: Mapping[str, Any]) -> Pass:
        """Runs a batch forward and backward, and counts what is alive."""
        self._step(batch, loop, deepest=True)  # what libraries set up at the first time is not the pass's
        reset_peak(CPU, collect=False)
        before = resident_bytes()
        kept: list[int] = []
        with LiveBytes() as live:
            self._step(batch, loop, deepest=True, forward_done=lambda: kept.append(live.live))
        rose = peak_bytes(CPU) - before
        return Pass(saved=max(kept), peak=live.peak, excess=max(0, rose - live.peak))

    def pace(self, batch: Batch, loop: Mapping[str, Any]) -> Pace:
        """Seconds of a pass over a batch. Where blocks take turns, the mean of the nearest's turn and the deepest's."""
        turns = (True, False) if self.settings.rotate else (True,)
        found = [_timed(partial(self._tidy_step, batch, loop, deepest)) for deepest in turns]
        return Pace(*(sum(getattr(pace, clock) for pace in found) / len(found) for clock in ("wall", "cpu")))

    def optimiser_pace(self) -> Pace:
        """Seconds of the optimiser and what comes with it, once a step."""
        if self.settings.optimizer == "mezo":
            return Pace(0.0, 0.0)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self._optimiser.step()

        self._zero()
        return _timed(step)

    def close(self) -> None:
        """Takes the entries out again; the model is as it was."""
        self._restore()
        self._optimiser.state.clear()
        self.model.zero_grad(set_to_none=True)
        self.run.fuse(self.model)

    def _tidy_step(self, batch: Batch, loop: Mapping[str, Any], deepest: bool) -> None:
        self._step(batch, loop, deepest=deepest)
        give_back(collect=False)  # as the run does under a budget

    def _step(
        self, batch: Batch, loop: Mapping[str, Any], *, deepest: bool, forward_done: Callable[[], None] = lambda: None
    ) -> None:
        s = self.settings
        sparing = s.sparing or bool(loop)
        rotation = Rotation(self.model, s.rotate) if s.rotate else None
        autocast = torch.autocast("cpu", dtype=torch.bfloat16) if s.bf16 else nullcontext()
        how = loop.get("recompute", s.recompute)
        try:
            with using("gather") if sparing else nullcontext(), recomputing(self.model, how):
                if rotation is not None:
                    rotation.begin((len(rotation.blocks) - 1) * s.rotate if deepest else 0)
                if s.optimizer == "mezo":
                    self.model.eval()
                    Mezo(parted(self.model, self.run.whole), lr=0.0).probe(lambda: _loss(self.model, batch, autocast))
                    forward_done()
                    return
                loss = _loss(self.model.train(), batch, autocast)
                forward_done()
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            if rotation is not None:
                rotation.end()
            self._restore()

    def _zero(self) -> None:
        """Gradients of zero rather than none: from the second part of a step's batch on they are there."""
        if self.settings.optimizer == "mezo":
            return
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, before in zip(self.trained, self._before, strict=True):
                parameter.copy_(before)
                if parameter.grad is not None:
                    parameter.grad.zero_()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Modes, buffers, what requires gradients and the random numbers are afterwards what they were before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        try:
            yield
        finally:
            for module, was in modes.items():
                module.training = was
            for parameter, was in required.items():
                parameter.requires_grad_(was)
            with torch.no_grad():
                for buffer, before in buffers.items():
                    buffer.copy_(before)


def _loss(model: nn.Module, batch: Batch, autocast: Any) -> Tensor:
    with autocast:
        loss: Tensor = model(**batch).loss
    return loss


def _timed(work: Callable[[], object]) -> Pace:
    """The median of a few."""
    work()
    walls: list[float] = []
    cpus: list[float] = []
    while len(walls) < REPEATS:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if walls[-1] > LONG:
            break
    return Pace(median(walls), median(cpus))
