"""Peak memory of a stretch of work.

On a GPU: what torch's allocator had reserved. On Linux: the peak of the resident set of this process, which the
kernel resets on request. Elsewhere the lifetime peak, which only ever rises.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Gives freed memory back to the system and starts a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # another libc, or a kernel that forbids it: the peak then is the lifetime's
            pass


def peak_bytes(device: torch.device) -> int:
    """The peak since :func:`reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> bool:
    """From now on freed tensors of 1 MiB and more go back to the system at once; False where that cannot be arranged.

    Else glibc keeps what is freed for later, in pieces that later tensors may not fit into, and the resident set grows
    to several times what is in use. For the whole process; tensors on a GPU are not concerned.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20))
    except (OSError, AttributeError):  # another libc
        return False


_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of malloc.h."""


def machine_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
