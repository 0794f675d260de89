"""Freed tensors go back to the system, where that can be arranged."""

import subprocess
import sys

import pytest

CODE = """
import torch
from taskedge.measure.memory import STATUS, peak_bytes, reset_peak, return_freed_memory

def resident():
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

assert return_freed_memory()
before = resident()
held = [torch.ones(2**20) for _ in range(50)]  # 4 MiB each: below what malloc maps by itself once it has seen larger
del held[:-1]  # the last one keeps a heap from shrinking
assert resident() < before + 20 * 2**20, (resident() - before) / 2**20
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_tensors_are_returned():
    warm = "import torch\nx = [torch.ones(k * 2**20) for k in (1, 7)]\ndel x\n"  # malloc learns from these
    subprocess.run([sys.executable, "-c", warm + CODE], check=True)
