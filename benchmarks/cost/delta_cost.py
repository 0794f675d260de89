"""What a trained change costs to keep and to use: bytes per entry, apply and revert, and the start of the command line.

python -m benchmarks.cost.delta_cost           # under a minute
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import taskedge as te
from benchmarks.cost.workload import SETTING, Batch, setup
from benchmarks.record import figure, show, write
from taskedge.forms.sparse import sparse_layers
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("delta_cost.json",)

BYTES = {"bf16": 4.3, "fp32": 6.3}
MILLISECONDS = 4.0
HELP_SECONDS = 0.3


def make_delta(model: nn.Module, batches: list[Batch]) -> te.Delta:
    """A delta of every entry moved, described as fully as a real one; leaves ``model`` as it was."""
    te.install(model, te.select(model, batches[:1], per_neuron=1))
    with torch.no_grad():
        for layer in sparse_layers(model).values():
            layer.entries.offsets.normal_(std=0.01)
    delta = te.extract(model).with_provenance(
        base="sentence-transformers/all-MiniLM-L6-v2",
        task="text-classification",
        labels=("negative", "positive"),
        training=TrainerConfig().model_dump() | {"max_length": 128, "train_rows": 4000},
    )
    with torch.no_grad():
        for layer in sparse_layers(model).values():
            layer.entries.offsets.zero_()
    te.fuse(model)
    return delta


def apply_and_revert(model: nn.Module, delta: te.Delta) -> float:
    """CPU milliseconds."""
    start = time.process_time()
    te.apply(model, delta)
    te.revert(model, delta)
    return (time.process_time() - start) * 1e3


def bytes_per_entry(delta: te.Delta, values: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = te.save(delta, Path(folder, "task.safetensors"), values=values, head=False)
        return path.stat().st_size / delta.num_entries


def help_seconds() -> float:
    """Wall seconds of a fresh process."""
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("taskedge"), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    model, batches = setup()
    delta = make_delta(model, batches)
    for _ in range(20):
        apply_and_revert(model, delta)
    figures = [
        figure(
            f"apply + revert of {delta.num_entries:,} entries and the head",
            [apply_and_revert(model, delta) for _ in range(200)],
            bar=MILLISECONDS,
            unit="ms",
        ),
        *(
            figure(
                f"delta file without the head, {values} values",
                [bytes_per_entry(delta, values)],
                bar=bar,
                unit="B/entry",
            )
            for values, bar in BYTES.items()
        ),
        figure("taskedge --help", [help_seconds() for _ in range(20)], bar=HELP_SECONDS, unit="s"),
    ]
    show(figures)
    write("cost", "delta_cost", {"setting": SETTING, "figures": figures})


if __name__ == "__main__":
    main()
