"""Memory of this process: peak and resident set, and the return of freed memory to the system.

The peak on a GPU is what torch's allocator has reserved. On Linux it is the peak of the resident set, which the kernel
resets on request. On other systems it is the lifetime peak, which never falls.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device, *, collect: bool = True) -> None:
    """Return freed memory to the system and start a new peak.

    Args:
        device: CPU or GPU.
        collect: also free reference cycles.
    """
    global _highest
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim_heap(collect=collect)
    _highest = max(_highest, peak_bytes(device))
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel that forbids it: the peak is then the lifetime peak
            Path("/proc/self/clear_refs").write_text("5")


def trim_heap(*, collect: bool = True) -> None:
    """Return freed memory to the system, as far as the C library can.

    Args:
        collect: also free reference cycles. This takes half a second if many libraries are loaded.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def lifetime_peak_bytes(device: torch.device) -> int:
    """Return the peak bytes of the whole process lifetime (on a GPU: since :func:`reset_peak`)."""
    return peak_bytes(device) if device.type == "cuda" else max(_highest, peak_bytes(device))


_highest = 0
"""Highest of the peaks that were reset."""


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes since :func:`reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return the resident set of this process in bytes; the peak if the system does not report it."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return peak_bytes(torch.device("cpu"))


def touch_weights(model: nn.Module) -> int:
    """Read every page of the weights, and return their bytes.

    Weight files are memory-mapped, so pages are resident only once they were read.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.detach()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.device.type == "cpu"
    }
    for tensor in storages.values():
        tensor.view(-1).view(torch.uint8)[:: _PAGE // 4].sum() if tensor.is_contiguous() else tensor.sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


_PAGE = 4096


def return_freed_memory(from_bytes: int = 2**20) -> bool:
    """Make malloc return freed tensors of ``from_bytes`` and more to the system at once, from now on.

    Otherwise glibc keeps freed memory, in pieces that later tensors may not fit into, and the resident set grows to
    several times the memory in use. The setting is for the whole process; it does not affect GPUs. The threshold can
    only fall: a later call with a larger one changes nothing.

    Returns:
        Whether the C library supports this.
    """
    global _threshold_bytes
    if sys.platform != "linux":
        return False
    threshold = min(from_bytes, _threshold_bytes or from_bytes)
    try:
        done = bool(ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, threshold))
    except (OSError, AttributeError):  # another libc
        return False
    if done:
        _threshold_bytes = threshold
    return done


_threshold_bytes: int | None = None
"""Present threshold; malloc cannot be queried for it."""

_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of malloc.h."""

TIGHT_THRESHOLD_BYTES = 2**15
"""Threshold for :func:`return_freed_memory` under a memory budget.

Nearly every tensor of a step is at least this large, so the resident set follows the live bytes to within some MB.
Steps of few tokens take up to a third longer.
"""


def machine_bytes(device: torch.device) -> int:
    """Return the memory of the GPU, or of the machine, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
