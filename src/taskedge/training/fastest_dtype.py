"""The dtype of the base weights in which a run is fastest on this processor, where its quality has been measured."""

from __future__ import annotations

from functools import cache

from taskedge.profiling.arithmetic_speed import GemmSpeeds, measure_gemm
from taskedge.training.tasks import Log

FASTEST = "fastest"
MEASURED = ("text-classification", "text-regression", "text-generation")
"""Kinds of task whose results with bf16 weights were those in fp32, within the range of seeds where there were several
(``python -m benchmarks.tasks.kinds``). Images lost a point or two, and the other kinds were not measured."""


@cache
def processor_speeds() -> GemmSpeeds:
    """Return the speeds of this processor, measured once in a process."""
    return measure_gemm()


def fastest_dtype(task: str, log: Log) -> str:
    """Return ``bf16`` where it pays on this processor and was measured for the task, else ``auto``; log the reason.

    Args:
        task: kind of task.
        log: called with one line.
    """
    if task not in MEASURED:
        log(
            f"--dtype {FASTEST}: the base keeps the dtype of its files: bf16 weights were compared with fp32 for "
            f"{', '.join(MEASURED)}, not for {task}, or they lost accuracy"
        )
        return "auto"
    speeds = processor_speeds()
    if not speeds.bf16_pays:
        log(f"--dtype {FASTEST}: the base keeps the dtype of its files: bf16 does not pay on this processor ({speeds})")
        return "auto"
    log(
        f"--dtype {FASTEST}: the base is loaded in bf16, whose products run {speeds.bf16 / speeds.fp32:.1f} times as "
        f"fast on this processor ({speeds})"
    )
    return "bf16"
