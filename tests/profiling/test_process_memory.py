"""Peaks and the resident set, and the return of freed tensors to the system."""

import subprocess
import sys

import pytest
import tiny
import torch

from taskedge.profiling.process_memory import (
    lifetime_peak_bytes,
    peak_bytes,
    reset_peak,
    resident_bytes,
    touch_weights,
    trim_heap,
)

CODE = """
import torch
from taskedge.profiling.process_memory import STATUS, peak_bytes, reset_peak, return_freed_memory

def resident():
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

assert return_freed_memory()
before = resident()
held = [torch.ones(2**20) for _ in range(50)]  # 4 MiB each: below what malloc maps by itself once it has seen larger
del held[:-1]  # the last one keeps a heap from shrinking
assert resident() < before + 20 * 2**20, (resident() - before) / 2**20
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_tensors_are_returned():
    warm = "import torch\nx = [torch.ones(k * 2**20) for k in (1, 7)]\ndel x\n"  # malloc learns from these
    subprocess.run([sys.executable, "-c", warm + CODE], check=True)


SMALL_THRESHOLD = """
from taskedge.profiling import process_memory as memory

assert memory.return_freed_memory(2**15)
assert memory.return_freed_memory()  # a later call with a larger threshold
before = memory.resident_bytes()
import torch
held = [torch.ones(2**14) for _ in range(1000)]  # 64 KiB each
kept = held[::2]
before = memory.resident_bytes()
del held
assert memory.resident_bytes() < before - 20 * 2**20
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_larger_threshold_changes_nothing():
    subprocess.run([sys.executable, "-c", SMALL_THRESHOLD], check=True)


@pytest.mark.slow
def test_the_peak_of_the_process_outlives_new_peaks():
    cpu = torch.device("cpu")
    held = torch.ones(40_000_000)
    del held
    high = lifetime_peak_bytes(cpu)
    reset_peak(cpu)
    assert lifetime_peak_bytes(cpu) >= high
    if sys.platform == "linux":
        assert peak_bytes(cpu) < high - 100e6


@pytest.mark.slow
def test_resident_bytes_rise_and_fall():
    trim_heap()
    before = resident_bytes()
    held = torch.ones(25_000_000)
    assert resident_bytes() > before + 90e6
    del held
    trim_heap()
    assert resident_bytes() < before + 50e6


def test_weights_count_once_and_stay_as_they_were():
    model = tiny.bert()
    before = tiny.state(model)
    assert touch_weights(model) == 4 * 5859 + sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert tiny.same_bits(before, tiny.state(model))
    tied = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(2)])
    tied[1].weight = tied[0].weight
    assert touch_weights(tied) == 64
