"""What training few columns of each input costs beside the frozen limit and LoRA: step, saved bytes, file.

    python -m benchmarks.cost.columns_cost  # some four minutes on one idle core

Supports of C columns of each shared input, with all entries there or one per neuron. No dropout. CPU time of the
process, ratios within a round as in step_cost.py.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import taskedge as te
from benchmarks.cost.saved_bytes import saved_bytes
from benchmarks.cost.step_cost import step_of
from benchmarks.cost.workload import METHODS, SETTING, Batch, set_dropout, setup
from benchmarks.record import figure, show, write

RESULTS = ("columns_cost.json",)

LIMIT, LORA, EIGHT = "frozen limit", "LoRA r=8", "8 columns"
SUPPORTS: dict[str, dict[str, Any]] = {
    "1 column": {"columns": 1},
    EIGHT: {"columns": 8},
    "8 columns, 1 entry per neuron": {"columns": 8, "per_neuron": 1},
    "32 columns": {"columns": 32},
    "1 entry per neuron": {"per_neuron": 1},
}
STEP_BARS = {(EIGHT, LIMIT): 1.04, (EIGHT, LORA): 0.80}
BYTES_BAR = 0.10
"""Bytes saved beyond the frozen limit by 8 columns, over those of LoRA r=8."""


def variants(base: nn.Module, calibration: list[Batch]) -> tuple[dict[str, nn.Module], dict[str, te.Support]]:
    """Return a copy of the model for everything that is compared, and the supports of ours."""
    models = {name: METHODS[name](copy.deepcopy(base), calibration) for name in (LIMIT, LORA)}
    supports = {name: te.select(base, calibration, **options) for name, options in SUPPORTS.items()}
    for name, support in supports.items():
        models[name] = te.install(copy.deepcopy(base), support, step="activation")
    for model in models.values():
        set_dropout(model.train(), 0.0)
    return models, supports


def size(models: dict[str, nn.Module], supports: dict[str, te.Support], batch: Batch) -> list[dict[str, Any]]:
    """Return numbers trained, stored columns, saved bytes and file bytes."""
    saved = {name: saved_bytes(model, batch) for name, model in models.items()}
    figures = []
    for name, support in supports.items():
        beyond = (saved[name] - saved[LIMIT]) / (saved[LORA] - saved[LIMIT])
        with tempfile.TemporaryDirectory() as folder:
            path = te.save(te.extract(models[name]), Path(folder) / "x", values="bf16", head=False)
            file_bytes = path.stat().st_size
        figures += [
            figure(f"entries: {name}", [support.num_entries]),
            figure(f"stored columns: {name}", [support.stored_columns]),
            figure(f"saved bytes: {name} / {LIMIT}", [saved[name] / saved[LIMIT]]),
            figure(
                f"saved bytes beyond the {LIMIT}: {name} / {LORA}",
                [beyond],
                bar=BYTES_BAR if name == EIGHT else None,
            ),
            figure(f"file in bf16 without the head: {name}", [file_bytes], unit="B"),
            figure(f"file in bf16 without the head, per entry: {name}", [file_bytes / support.num_entries], unit="B"),
        ]
    return figures


def ratios(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the time of a step over that of the frozen limit and of LoRA, within a round."""
    return [
        figure(
            f"step: {name} / {other}",
            [one / base for one, base in zip(seconds[name], seconds[other], strict=True)],
            bar=STEP_BARS.get((name, other)),
        )
        for other in (LIMIT, LORA)
        for name in (*SUPPORTS, *((LORA,) if other == LIMIT else ()))
    ]


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of the steps of each round; two rounds before are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(0).shuffle
    for turn in range(-2, rounds):
        order = list(steps)
        shuffle(order)
        for name in order:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    base, calibration = setup()
    models, supports = variants(base, calibration)
    figures = size(models, supports, calibration[0])
    seconds = measure({name: step_of(model, calibration[0], None) for name, model in models.items()}, rounds)
    figures = ratios(seconds) + figures
    show(figures)
    setting = f"{SETTING.partition('; entries')[0]}; no dropout; AdamW; 36 encoder linears, the classifier trains too"
    write("cost", "columns_cost", {"setting": setting, "rounds": rounds, "figures": figures})


if __name__ == "__main__":
    main()
