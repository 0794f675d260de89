"""A base held as int8 against one in fp32: memory of the base and of training, time of a step, accuracy of two tasks.

    python -m benchmarks.memory.int8_base  # some 15 minutes on one idle core

Memory is that of a process of its own for each way, less what was resident when it had loaded, run and dropped the
model once (libraries, kernels). The base: the bytes of its tensors, and what is resident after loading and one pass
over a few tokens. Loading and training: the peak. Pages of the mapped file count as resident. Time is CPU time, steps
of both ways taking turns. Accuracy: the protocol of accuracy.py at the rate that its sweep found for fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.sweep import SEEDS, Sweep
from benchmarks.memory.storage_workload import FOLDERS, SETTING, first_pass, load, memory, quiet, training
from benchmarks.record import figure, rerun, show, write
from taskedge.backbone.storage.set_storage import set_weight_storage
from taskedge.forms.kernels import force_kernel
from taskedge.profiling.process_memory import peak_bytes, reset_peak

RESULTS = ("int8_base.json",)

WAYS = {"fp32": "resident", "int8": "int8"}
METHOD, TASKS = "taskedge, scaled step", ("tweets", "sms-spam")
CPU = torch.device("cpu")


def measure_memory(name: str, way: str) -> dict[str, int]:
    """Bytes of one way, in this process."""
    quiet()
    first_pass(load(FOLDERS[name](print)))
    reset_peak(CPU)
    before = memory()["Rss"]
    model = load(FOLDERS[name](print)).eval()
    set_weight_storage(model, WAYS[way])
    tensors = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    found = {"tensors": tensors, "loading": peak_bytes(CPU) - before}
    first_pass(model)
    found["base"] = memory()["Rss"] - before
    step = training(model, "resident")  # it is held already
    reset_peak(CPU)
    with force_kernel("gather"):
        for _ in range(2):
            step()
    return found | {"training": peak_bytes(CPU) - before}


def memories() -> list[dict[str, Any]]:
    figures = []
    for name in FOLDERS:
        found = {}
        for way in WAYS:
            command = rerun("--one", name, way)
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        for what in found["fp32"]:
            of_way = {way: found[way][what] for way in WAYS}
            figures += [figure(f"{name}: {what}, {way}", [size / 2**20], unit="MiB") for way, size in of_way.items()]
            figures.append(figure(f"{name}: {what}, int8 / fp32", [of_way["int8"] / of_way["fp32"]]))
    return figures


def seconds(rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of a step; the first round is not counted."""
    quiet()
    figures = []
    for name, folder in FOLDERS.items():
        steps = {way: training(load(folder(print)), held) for way, held in WAYS.items()}
        ratios = []
        for turn in range(rounds + 1):
            taken = {}
            for way, step in steps.items():
                with force_kernel("gather"):
                    start = time.process_time()
                    step()
                    taken[way] = time.process_time() - start
            if turn:
                ratios.append(taken["int8"] / taken["fp32"])
        figures.append(figure(f"{name}: step, int8 / fp32", ratios))
    return figures


def _held(base: Callable[[], nn.Module], way: str) -> nn.Module:
    model = base()
    return model if way == "resident" else set_weight_storage(model, way)


def accuracies() -> list[dict[str, Any]]:
    """Test accuracy of both ways by seed; a figure is the difference in points."""
    found = []
    for task in TASKS:
        sweep = Sweep(task)
        rate, base = sweep.best_rate(METHOD), sweep.base
        tests = {}
        for way, held in WAYS.items():
            sweep.base = partial(_held, base, held)
            with tempfile.TemporaryDirectory() as folder:
                sweep.path = Path(folder) / "runs.jsonl"
                sweep.path.touch()
                tests[way] = [sweep.run(METHOD, rate, seed)["test"] for seed in SEEDS]
        lost = 100 * (statistics.mean(tests["fp32"]) - statistics.mean(tests["int8"]))
        found.append({"task": task, "lr": rate, "seeds": list(SEEDS), **tests})
        found[-1] |= {"points_lost": lost, "bar": 1.0, "met": lost <= 1.0}
        print(
            f"{task}: fp32 {statistics.mean(tests['fp32']):.4f}, int8 {statistics.mean(tests['int8']):.4f}", flush=True
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="print the memory of one way as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_memory(*arguments.one)))
        return
    figures = memories() + seconds(arguments.rounds)
    show(figures)
    write("memory", "int8_base", {"setting": SETTING, "figures": figures, "accuracy": accuracies()})


if __name__ == "__main__":
    main()
