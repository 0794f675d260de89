"""Chips and tensors for tests of the placement."""

from __future__ import annotations

import numpy as np

from taskedge.placement.chip_file import Chip, ChipLimits, ChipUse, Memory, MemorySpec
from taskedge.placement.memory_cells import load_cell
from taskedge.placement.stored_tensors import StoredTensor

CHIP = """
[use]
tokens_per_pass = 8
passes_per_hour = 100

[[memory]]
name = "sram"
cell = "sram"
capacity_bytes = 20_000

[[memory]]
name = "reram"
cell = "reram"
capacity_bytes = 1_000_000
"""


def memory(cell: str, capacity_bytes: int, **changes) -> Memory:
    """Return a memory that has the name of its cell."""
    return Memory(MemorySpec(name=cell, cell=cell, capacity_bytes=capacity_bytes, **changes), load_cell(cell))


def chip(*memories: Memory, limits: dict | None = None, **use) -> Chip:
    """Return a chip."""
    return Chip(ChipUse(**use), ChipLimits(**(limits or {})), memories)


def random_case(rng: np.random.Generator) -> tuple[list[StoredTensor], Chip]:
    """Return up to 6 tensors, some of them of tasks, and 2 to 4 memories, sometimes too small and with limits."""
    cells = rng.permutation(["sram", "reram", "fefet", "pcm", "stt", "dram", "flash"])[: rng.integers(2, 5)]
    count = int(rng.integers(1, 7))
    tasks = int(rng.integers(0, count))
    tensors = []
    for index in range(count):
        bits = int(rng.choice([64, 1000, 4096, int(rng.integers(1, 50_000))]))
        if index < tasks:
            name = f"t{index // 2}"
            tensors.append(
                StoredTensor(f"{name}: {index}", "task", bits, bits, share=1 / ((tasks + 1) // 2), task=name)
            )
        elif index == count - 1 and rng.random() < 0.5:
            tensors.append(StoredTensor("activations", "activations", bits, 20 * bits, 10 * bits))
        else:
            tensors.append(StoredTensor(f"w{index}", "base", bits, int(bits * rng.integers(0, 4))))
    total = sum(tensor.bits for tensor in tensors) / 8
    sizes = [max(1, int(total * rng.uniform(0.2, 1.2))) for _ in cells]
    buffers_only = rng.random() < 0.4  # many passes, and tasks live elsewhere than in SRAM: a buffer there may pay
    cells = ["sram", *(cell for cell in cells if cell != "sram")] if buffers_only else list(cells)
    sizes = [*sizes, *sizes][: len(cells)]
    memories = []
    for index, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
        holds = {"holds": ["base", "activations", "buffer"]} if buffers_only and index == 0 else {}
        memories.append(memory(str(cell), size, ports=int(rng.integers(1, 3)), **holds))
    limits = {}
    if rng.random() < 0.3:
        limits["pass_seconds"] = float(10 ** rng.uniform(-7, -4))
    if rng.random() < 0.3:
        limits["area_mm2"] = float(total / 2**20 * rng.uniform(0.05, 0.7))
    if rng.random() < 0.2:
        limits["switch_seconds"] = float(10 ** rng.uniform(-8, -4))
    use = {
        "passes_per_hour": float(10 ** (rng.uniform(8, 11) if buffers_only else rng.uniform(-1, 10))),
        "switches_per_hour": float(10 ** rng.uniform(-2, 4)),
        "task_updates_per_day": float(rng.choice([0.0, 1.0])),
    }
    return tensors, chip(*memories, limits=limits, **use)
