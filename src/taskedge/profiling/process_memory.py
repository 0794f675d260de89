"""Peak memory of a stretch of work.

On a GPU: what torch's allocator had reserved. On Linux: the peak of the resident set of this process, which the
kernel resets on request. Elsewhere the lifetime peak, which only ever rises.
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
    """Gives freed memory back to the system and starts a new peak; ``collect``: that of circles of objects, too."""
    global _highest
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back(collect=collect)
    _highest = max(_highest, peak_bytes(device))
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel that forbids it: the peak then is the lifetime's
            Path("/proc/self/clear_refs").write_text("5")


def give_back(*, collect: bool = True) -> None:
    """Freed memory goes back to the system, as far as the C library can.

    ``collect``: that of circles of objects, too, which takes half a second where many libraries are loaded.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def lifetime_peak_bytes(device: torch.device) -> int:
    """The peak since the process began, however often :func:`reset_peak` started a new one (on a GPU: since then)."""
    return peak_bytes(device) if device.type == "cuda" else max(_highest, peak_bytes(device))


_highest = 0
"""The highest of the peaks that were reset."""


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


def resident_bytes() -> int:
    """The resident set of this process now; where the system does not say, the largest there was."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return peak_bytes(torch.device("cpu"))


def hold(model: nn.Module) -> int:
    """Reads every weight once and returns their bytes: files are mapped, and count as resident only from then on."""
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
    """From now on freed tensors of so many bytes and more go back to the system at once; False where that cannot be.

    Else glibc keeps what is freed for later, in pieces that later tensors may not fit into, and the resident set grows
    to several times what is in use. For the whole process; tensors on a GPU are not concerned. Once it was asked for
    smaller tensors, a later wish for larger ones only leaves it there.
    """
    global _returned_from
    if sys.platform != "linux":
        return False
    wanted = min(from_bytes, _returned_from or from_bytes)
    try:
        done = bool(ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, wanted))
    except (OSError, AttributeError):  # another libc
        return False
    _returned_from = wanted if done else _returned_from
    return done


_returned_from: int | None = None
"""What malloc was told, which cannot be asked of it."""

_MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of malloc.h."""

TIGHT = 2**15
"""For :func:`return_freed_memory` under a budget: nearly every tensor of a step is at least so large, so the resident
set follows the bytes that are alive to some MB, for up to a third more time in steps of few tokens."""


def machine_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
