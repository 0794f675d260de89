"""Runs a model for a few seconds on the machine it stands on, and says what a training step costs by depth."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from taskedge.backbone.cost_table import BlockTable
from taskedge.errors import InputError
from taskedge.profiling.energy import Meter
from taskedge.profiling.line_fit import rising_line
from taskedge.profiling.process_memory import machine_bytes, peak_bytes, reset_peak
from taskedge.profiling.profile_file import Energy, Machine, MeasuredDepth, Profile
from taskedge.profiling.training_steps import Training

GEMM_SIZES = (512, 1024, 2048)
GEMM_SECONDS = 0.3  # for each size


@dataclass(frozen=True)
class Effort:
    """How much to run: ``warm`` steps that are thrown away and ``steps`` that count, per depth.

    ``clock``: ``wall``, or ``cpu`` for a machine that others use at the same time: the processor seconds of this
    process, which with one thread are the wall seconds of an idle machine.
    """

    warm: int = 2
    steps: int = 9
    clock: Literal["wall", "cpu"] = "wall"

    def now(self) -> float:
        return time.perf_counter() if self.clock == "wall" else time.process_time()


def measure(
    training: Training,
    table: BlockTable,
    inputs: dict[str, Tensor],
    depths: Sequence[int] | None = None,
    effort: Effort = Effort(),
    watts: float | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> Profile:
    """Measures a few depths and predicts the rest.

    Args:
        training: the model, made trainable to a chosen depth.
        table: the model's block table, one row per layer.
        inputs: one batch, [sequences, tokens] first.
        depths: which depths to run; by default 1, the middle and the deepest.
        effort: how long.
        watts: the machine's power, for where it has no counter.
        on_step: called with 1 after every step.

    Returns:
        The profile. Depths take turns step by step, so that a machine that slows down or is shared slows all of
        them alike. Seconds are medians; a step is forward, backward and optimiser.
    """
    layers = len(table)
    chosen = sorted(set(depths or default_depths(layers)))
    if not all(1 <= depth <= layers for depth in chosen):
        raise InputError(f"depths {chosen}: the model has {layers} layers, so give depths from 1 to {layers}")
    device = training.device
    if effort.clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise InputError("--clock cpu needs one thread on a CPU: set OMP_NUM_THREADS=1")
    reset_peak(device)
    idle = peak_bytes(device)
    peaks = {depth: _peak(training, depth, inputs, effort.warm, on_step) for depth in chosen}
    seconds, forward, energy = _time(training, chosen, inputs, effort, watts, on_step)
    shape = next(iter(inputs.values())).shape
    tokens = shape[0] * shape[1]
    peak_flops = gemm_peak(device, training.dtype, now=effort.now)
    forward_flops = (table.forward_flops.sum() + table.other_forward_flops) * tokens / forward
    reached = table.backward_flops[: chosen[-1]].sum() * tokens
    backward_flops = reached / max(statistics.median(seconds[chosen[-1]]) - forward, 1e-9)
    medians = [statistics.median(seconds[depth]) for depth in chosen]
    step_seconds = rising_line(np.cumsum(table.backward_flops), chosen, medians)
    kept = rising_line(np.cumsum(table.activation_bytes), chosen, [peaks[depth] for depth in chosen])
    return Profile(
        model=table.model,
        model_digest=table.digest,
        trained=training.what,
        clock=effort.clock,
        batch_sequences=shape[0],
        sequence_tokens=shape[1],
        machine=_machine(device),
        gemm_peak_flops_per_second=peak_flops,
        forward_flops_per_second=float(forward_flops),
        backward_flops_per_second=float(backward_flops),
        forward_mfu_ratio=float(forward_flops / peak_flops),
        backward_mfu_ratio=float(backward_flops / peak_flops),
        tokens_per_second=float(tokens / step_seconds[-1]),
        idle_bytes=float(idle),
        measured=[
            MeasuredDepth(
                depth=depth,
                seconds=median,
                seconds_quartiles=list(np.percentile(seconds[depth], [25, 75]).tolist()),
                peak_bytes=float(peaks[depth]),
            )
            for depth, median in zip(chosen, medians, strict=True)
        ],
        step_seconds=step_seconds.tolist(),
        peak_bytes=kept.tolist(),
        energy=_per_step(energy, tokens),
    )


def default_depths(layers: int) -> list[int]:
    """The shallowest, the middle and the deepest."""
    return sorted({1, (layers + 1) // 2, layers})


def gemm_peak(device: torch.device, dtype: torch.dtype, now: Callable[[], float] = time.perf_counter) -> float:
    """Best FLOP/s of square matrix products: the ceiling that MFU is a share of (arXiv 2310.03150)."""
    best = 0.0
    for size in GEMM_SIZES:
        a = torch.randn(size, size, device=device, dtype=dtype)
        end = now() + GEMM_SECONDS
        while True:
            best = max(best, 2 * size**3 / _clock(device, partial(torch.matmul, a, a), now))
            if now() > end:
                break
    return best


def _clock(device: torch.device, work: Callable[[], Any], now: Callable[[], float]) -> float:
    """Seconds of ``work``, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - start


def _peak(training: Training, depth: int, inputs: dict[str, Tensor], warm: int, on_step: Callable[[int], None]) -> int:
    reset_peak(training.device)
    with training.reaching(depth) as step:
        for _ in range(max(warm, 2)):  # the second step has the optimiser's state
            step(inputs)
            on_step(1)
    training.forget()
    return peak_bytes(training.device)


def _time(
    training: Training,
    depths: list[int],
    inputs: dict[str, Tensor],
    effort: Effort,
    watts: float | None,
    on_step: Callable[[int], None],
) -> tuple[dict[int, list[float]], float, Meter]:
    """Seconds per depth, the median seconds of a forward pass, and the energy of the deepest depth's steps."""
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    forward: list[float] = []
    for _ in range(effort.steps):
        for depth in depths:
            with training.reaching(depth) as step:
                seconds[depth].append(_clock(training.device, partial(step, inputs), effort.now))
            on_step(1)
        forward.append(_clock(training.device, partial(training.forward, inputs), effort.now))
    with training.reaching(depths[-1]) as step, Meter(watts) as meter:
        for _ in range(effort.warm):
            step(inputs)
    meter.joules = None if meter.joules is None else meter.joules / effort.warm
    meter.seconds /= effort.warm
    return seconds, statistics.median(forward), meter


def _per_step(meter: Meter, tokens: int) -> Energy:
    if meter.joules is None or not meter.seconds:
        return Energy(source="none")
    return Energy(
        source=meter.source,
        watts=meter.joules / meter.seconds,
        joules_per_step=meter.joules,
        tokens_per_joule=tokens / meter.joules if meter.joules else None,
    )


def _machine(device: torch.device) -> Machine:
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return Machine(
        name=platform.node() or "unknown",
        accelerator=f"{device.type}: {accelerator}",
        threads=torch.get_num_threads(),
        memory_bytes=float(machine_bytes(device)),
        torch=torch.__version__,
    )
