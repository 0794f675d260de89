"""Speed of this processor's matrix products: in fp32 and bf16, and with one thread and several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PAYS = 0.8
"""Share of the fp32 time below which the time in bf16 pays."""
_SIZE = 512
_PROBE_SIZE = 64
EMULATED = 10.0
"""Times the fp32 time of a small product from which bf16 is emulated. A product of full size would take a second."""


@dataclass(frozen=True)
class GemmSpeeds:
    """Floating-point operations per second of a square matrix product, with the present number of threads."""

    fp32: float
    bf16: float

    @property
    def bf16_pays(self) -> bool:
        """Whether bf16 saves a fifth of the time or more."""
        return self.fp32 < PAYS * self.bf16

    def __str__(self) -> str:
        fp32, bf16 = (
            f"{speed / 1e9:,.0f}" if speed >= 1e10 else f"{speed / 1e9:.2g}" for speed in (self.fp32, self.bf16)
        )
        return f"fp32 {fp32} GFLOP/s, bf16 {bf16} GFLOP/s"


def measure_gemm(repeats: int = 9) -> GemmSpeeds:
    """Measure both; the best of several, since other processes can only lengthen a measurement. Takes about 0.1 s.

    Where bf16 is emulated, its speed is that of a small product.
    """
    small = [_best_seconds(_PROBE_SIZE, dtype, 3) for dtype in (torch.float32, torch.bfloat16)]
    size = _SIZE if small[1] < EMULATED * small[0] else _PROBE_SIZE
    bf16 = small[1] if size == _PROBE_SIZE else _best_seconds(size, torch.bfloat16, repeats)
    return GemmSpeeds(2.0 * _SIZE**3 / _best_seconds(_SIZE, torch.float32, repeats), 2.0 * size**3 / bf16)


def _best_seconds(size: int, dtype: torch.dtype, repeats: int) -> float:
    """Return the seconds of a square product, the best of several."""
    matrix = torch.ones(size, size, dtype=dtype)
    return min(_seconds(lambda: matrix @ matrix, repeats))


def threads_that_pay(threads: int, time_with: Callable[[int], float] | None = None) -> int:
    """Return ``threads``, or 1 if as many take longer for the same products than one does.

    On a busy machine threads wait for each other: one that has no core makes all others wait. The median counts, since
    that waiting is no accident of the measurement.

    Args:
        threads: number of threads to compare with one.
        time_with: returns seconds with a number of threads; by default they are measured here, in about 0.2 s.
    """
    if threads <= 1:
        return threads
    measured = time_with or _time_with
    return 1 if measured(threads) > measured(1) else threads


def _time_with(threads: int) -> float:
    before = torch.get_num_threads()
    matrix = torch.ones(256, 384)
    weight = torch.ones(384, 384)
    torch.set_num_threads(threads)
    try:
        return statistics.median(_seconds(lambda: [matrix @ weight for _ in range(10)], 15))
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds
