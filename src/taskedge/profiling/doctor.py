"""Checks of the installation: does this machine train correctly, and as fast as it can?"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch

from taskedge.forms.kernels import EntryIndex, choose_kernel, entry_gradient, force_kernel
from taskedge.profiling.arithmetic_speed import measure_gemm, threads_that_pay

OK, SLOW, BROKEN = "ok", "slow", "broken"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: what was checked.
        state: OK, SLOW or BROKEN.
        found: the observation.
        advice: what to do, if the state is not OK.
    """

    subject: str
    state: str
    found: str
    advice: str = ""


def check_installation() -> list[Finding]:
    """Check versions, threads, kernels, memory and arithmetic. This takes a few seconds."""
    return [_versions(), _threads(), *_kernels(), _allocation(), _memory(), _bfloat16()]


def _versions() -> Finding:
    names = ("taskedge", "torch", "transformers", "safetensors", "numpy")
    found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return Finding("versions", OK, f"Python {platform.python_version()}, {found} on {platform.machine()}")


def _threads() -> Finding:
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found = f"torch uses {threads} of {cores or os.cpu_count()} cores"
    if threads_that_pay(threads) < threads:
        return Finding(
            "threads",
            SLOW,
            f"{found}, and one thread is faster now",
            "the machine is busy: tune takes one, as --threads 1",
        )
    if cores and threads > cores:
        return Finding("threads", SLOW, found, f"more threads than cores slow each other down: --threads {cores}")
    if cores and threads < cores:
        cause = "OMP_NUM_THREADS is set" if "OMP_NUM_THREADS" in os.environ else "set in torch"
        return Finding("threads", SLOW, f"{found} ({cause})", f"--threads {cores} uses them all")
    return Finding("threads", OK, found)


def _kernels() -> list[Finding]:
    tokens, out, stored = 2048, 384, 64
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(tokens, out, generator=generator)
    x = torch.randn(tokens, stored, generator=generator)
    index = EntryIndex(torch.arange(out), torch.randint(stored, (out,), generator=generator), out)
    exact = (dy.double().t() @ x.double())[index.rows, index.columns]
    with force_kernel("gather"):
        portable = _milliseconds(lambda: entry_gradient(dy, x, index))
    best = _milliseconds(lambda: entry_gradient(dy, x, index))
    name = type(choose_kernel(dy, x, index)).__name__.lower()
    error = float((entry_gradient(dy, x, index) - exact).norm() / exact.norm())
    right = Finding("gradients", OK if error < 1e-4 else BROKEN, f"{error:.1e} from float64 by the {name} kernel",
                    "" if error < 1e-4 else "do not train on this machine; report it")  # fmt: skip
    if name != "numba":
        speed = Finding(
            "kernel", SLOW, f"portable ({portable:.2f} ms)", "pip install 'taskedge[fast]' for the fast one"
        )
    else:
        speed = Finding("kernel", OK, f"{name} ({best:.2f} ms; portable {portable:.2f} ms)")
    return [right, speed]


def _allocation() -> Finding:
    """Compare a new large tensor with one that is overwritten: the difference is the cost of page faults."""
    source = torch.ones(6_000_000)
    target = torch.empty_like(source)
    fresh, reused = _milliseconds(source.clone), _milliseconds(lambda: target.copy_(source))
    found = f"a new 24 MB tensor takes {fresh:.1f} ms, rewriting one {reused:.1f} ms"
    if fresh > 2.5 * reused:
        return Finding(
            "allocation", SLOW, found,
            "page faults: export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 "
            "(memory is then kept and not returned to the system)",
        )  # fmt: skip
    return Finding("allocation", OK, found)


def _memory() -> Finding:
    available = available_memory()
    if available is None:
        return Finding("memory", OK, "this system does not report free memory")
    found = f"{available / 1e9:.1f} GB free"
    if available < 500e6:
        return Finding("memory", SLOW, found, "smaller batches and a lower --max-length need less")
    return Finding("memory", OK, found)


def available_memory() -> int | None:
    """Return the bytes that a process can still use without swapping; None if the system does not report them."""
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _bfloat16() -> Finding:
    speeds = measure_gemm()
    share = f"a bf16 product takes {speeds.fp32 / speeds.bf16:.2f} of the time of an fp32 one ({speeds})"
    return Finding(
        "bfloat16",
        OK,
        share + (": --bf16 and --dtype fastest pay" if speeds.bf16_pays else ": --bf16 does not pay here"),
    )


def _milliseconds(work: Callable[[], object], repeats: int = 9) -> float:
    """Return the wall time in ms: the minimum of several, since other processes can only add to it."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * min(seconds)
