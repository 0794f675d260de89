"""Bytes that cross the cut in a training step, against the closed form, by what trains and by coding: MiniLM-L6.

    OMP_NUM_THREADS=1 python -m benchmarks.cooperation.cut_bytes  # minutes

Counted are whole messages before encryption: headers, masks, and coded activations and gradients. The first two lines
have a batch of 32 texts of 128 tokens, the others one of 8 texts of 32 tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.cooperation.cut_setting import WAYS, Cut, bytes_of_passes, minilm_groups, write_texts
from benchmarks.record import write
from taskedge.cooperation.cut.cut_plan import plan_step

RESULTS = ("cut_bytes.json",)
LARGE, SMALL = (32, 128), (8, 32)
LORA, BLOCK = "LoRA, rank 8", "32 rows x 32 columns"
FORMULA_BAR, RATIO_BAR = 0.02, 1 / 12
RUNS: list[tuple[str, str, tuple[int, int], int]] = [
    *((way, "fp32", LARGE, 1) for way in (LORA, BLOCK)),
    ("32 columns", "fp32", SMALL, 2),
    *((BLOCK, coding, SMALL, 2) for coding in ("fp32", "bf16", "float8", "int8")),
]
"""(way, coding, rows and tokens of a batch, steps)."""


def measured(cut: Cut, way: str, coding: str, batch: tuple[int, int], steps: int) -> dict[str, Any]:
    """Train a few steps and return the bytes of a step beside the closed form."""
    rows, tokens = batch
    texts = write_texts(cut.folder, rows, tokens)
    config = cut.config(texts, batch_size=rows, max_length=tokens, epochs=float(steps), **WAYS[way])
    done = cut.run(config, coding=coding)
    counted = done.result.counted
    assert counted.training_passes == counted.passes == steps, counted
    crossed = {direction: size / steps for direction, size in bytes_of_passes(done).items()}
    line: dict[str, Any] = {
        "what": way,
        "coding": coding,
        "batch": list(batch),
        "steps": steps,
        "down_bytes": crossed["down"],
        "up_bytes": crossed["up"],
    }
    plan = plan_step(minilm_groups(way), rows * tokens, 384, coding)
    line |= {"formula_bytes": plan.step_bytes, "round_trips": plan.round_trips}
    line["over_formula"] = (crossed["down"] + crossed["up"]) / line["formula_bytes"] - 1
    print(line, flush=True)
    return line


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cut = Cut(Path(folder))
        lines = [measured(cut, *run) for run in RUNS]
    total = [line["down_bytes"] + line["up_bytes"] for line in lines]
    compared = [
        bar("32 x 32 / LoRA of rank 8, all modules", total[1] / total[0], RATIO_BAR),
        bar("largest excess over the closed form", max(line["over_formula"] for line in lines), FORMULA_BAR),
    ]
    for line in compared:
        print(line)
    write("cooperation", "cut_bytes", {"setting": "MiniLM-L6, all linears", "runs": lines, "compared": compared})


def bar(what: str, value: float, limit: float | None = None) -> dict[str, Any]:
    """Return a figure beside its bar."""
    return {"what": what, "value": value} | ({} if limit is None else {"bar": limit, "met": value <= limit})


if __name__ == "__main__":
    main()
