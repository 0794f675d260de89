"""Measurement of the cost of a training step by depth, in a few seconds on this machine."""

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
from taskedge.profiling.energy import EnergyMeter
from taskedge.profiling.line_fit import rising_line
from taskedge.profiling.process_memory import machine_bytes, peak_bytes, reset_peak
from taskedge.profiling.profile_file import Energy, Machine, MeasuredDepth, Profile
from taskedge.profiling.training_steps import DepthTraining

GEMM_SIZES = (512, 1024, 2048)
"""Sizes of the square matrix products that measure the peak."""

GEMM_SECONDS = 0.3
"""Time for each size."""


@dataclass(frozen=True)
class Effort:
    """Extent of a measurement.

    Attributes:
        warmup_steps: steps per depth that are not timed.
        timed_steps: steps per depth that are timed.
        clock: ``wall``, or ``cpu`` for a machine in use by others: processor seconds of this process, which with one
            thread equal the wall seconds of an idle machine.
    """

    warmup_steps: int = 2
    timed_steps: int = 9
    clock: Literal["wall", "cpu"] = "wall"

    def now(self) -> float:
        """Return the time of the clock in seconds."""
        return time.perf_counter() if self.clock == "wall" else time.process_time()


def measure_profile(
    training: DepthTraining,
    table: BlockTable,
    inputs: dict[str, Tensor],
    depths: Sequence[int] | None = None,
    effort: Effort = Effort(),
    watts: float | None = None,
    on_step: Callable[[int], object] = lambda _: None,
) -> Profile:
    """Measure a few depths and predict the others.

    Args:
        training: the model.
        table: the model's block table, one row per layer.
        inputs: one batch, [sequences, tokens] first.
        depths: depths to run; by default 1, the middle and the deepest.
        effort: extent of the measurement.
        watts: power of the machine, for a machine without a power counter.
        on_step: called with 1 after every step.

    Returns:
        The profile. Seconds are medians. A step is forward pass, backward pass and optimizer. The depths alternate
        step by step, so that a slowdown of the machine affects all of them alike.

    Raises:
        InputError: a depth that the model does not have, or the ``cpu`` clock with several threads or on a GPU.
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
    peaks = {depth: _peak(training, depth, inputs, effort.warmup_steps, on_step) for depth in chosen}
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
        trained=training.trained,
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
    """Return the shallowest, the middle and the deepest depth."""
    return sorted({1, (layers + 1) // 2, layers})


def gemm_peak(device: torch.device, dtype: torch.dtype, now: Callable[[], float] = time.perf_counter) -> float:
    """Return the best FLOP/s of square matrix products, which MFU is relative to (arXiv 2310.03150)."""
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
    """Return the seconds of ``work``, with the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - start


def _peak(
    training: DepthTraining, depth: int, inputs: dict[str, Tensor], warmup_steps: int, on_step: Callable[[int], object]
) -> int:
    reset_peak(training.device)
    with training.training_to(depth) as step:
        for _ in range(max(warmup_steps, 2)):  # the optimizer has its state from the second step on
            step(inputs)
            on_step(1)
    training.clear_optimizers()
    return peak_bytes(training.device)


def _time(
    training: DepthTraining,
    depths: list[int],
    inputs: dict[str, Tensor],
    effort: Effort,
    watts: float | None,
    on_step: Callable[[int], object],
) -> tuple[dict[int, list[float]], float, EnergyMeter]:
    """Return seconds per depth, the median seconds of a forward pass, and the energy of a step at the deepest depth."""
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    forward: list[float] = []
    for _ in range(effort.timed_steps):
        for depth in depths:
            with training.training_to(depth) as step:
                seconds[depth].append(_clock(training.device, partial(step, inputs), effort.now))
            on_step(1)
        forward.append(_clock(training.device, partial(training.forward, inputs), effort.now))
    with training.training_to(depths[-1]) as step, EnergyMeter(watts) as meter:
        for _ in range(effort.warmup_steps):
            step(inputs)
    meter.joules = None if meter.joules is None else meter.joules / effort.warmup_steps
    meter.seconds /= effort.warmup_steps
    return seconds, statistics.median(forward), meter


def _per_step(meter: EnergyMeter, tokens: int) -> Energy:
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
