"""A mapped base that two processes share against bases of their own: private memory, and the time of a step.

    python -m benchmarks.memory.mmap_base  # some five minutes on one idle core

Two processes at once load one model each way and train two steps, and tell what the kernel says while both are there:
``Private`` is what would be free again if the process ended, ``Pss`` counts shared pages in equal parts. Less what the
process held before it loaded, when it had loaded, run and dropped the model once. ``copied`` reads the file into memory
of its own; ``loaded`` is what transformers does, which maps the file, and entries are written into the mapped pages;
``mapped`` leaves these alone. Other processes that map the same file while this runs would share it too: the folder is
a copy. Time is CPU time in one process, steps of the ways taking turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory.storage_workload import FOLDERS, SETTING, first_pass, load, memory, quiet, training
from benchmarks.record import figure, rerun, show, write
from taskedge.forms.kernels import force_kernel

RESULTS = ("mmap_base.json",)

WAYS = ("copied", "loaded", "mapped")
STORAGE = {"copied": "resident", "loaded": "resident", "mapped": "mmap"}
PROCESSES = 2


def loading(folder: Path, way: str) -> Any:
    return load(folder, **({"disable_mmap": True} if way == "copied" else {}))


def one(folder: Path, way: str) -> None:
    """A process that trains, says so, waits for a line, says what it holds, and waits for another."""
    quiet()
    first_pass(loading(folder, way))
    before = memory()
    model = loading(folder, way)
    step = training(model, STORAGE[way])
    with force_kernel("gather"):
        for _ in range(2):
            step()
    print("trained", flush=True)
    input()
    now = memory()
    private = sum(now[kind] - before[kind] for kind in ("Private_Dirty", "Private_Clean"))
    print(json.dumps({"private": private, "pss": now["Pss"] - before["Pss"]}), flush=True)
    input()


def memories(name: str, folder: Path) -> list[dict[str, Any]]:
    figures = []
    for way in WAYS:
        command = rerun("--one", str(folder), way)
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        running = [subprocess.Popen(command, **pipes) for _ in range(PROCESSES)]
        for process in running:
            while process.stdout.readline().strip() != "trained":
                assert process.poll() is None
        told = []
        for process in running:
            process.stdin.write("\n")
            told.append(json.loads(process.stdout.readline()))
        for process in running:
            process.stdin.write("\n")
            process.wait()
        for what in told[0]:
            sizes = [each[what] / 2**20 for each in told]
            figures.append(figure(f"{name}: {what} of each of {PROCESSES}, {way}", sizes, unit="MiB"))
    return figures


def seconds(name: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of a step; the first round is not counted."""
    steps = {way: training(load(folder), STORAGE[way]) for way in ("loaded", "mapped")}
    ratios = []
    for turn in range(rounds + 1):
        taken = {}
        for way, step in steps.items():
            with force_kernel("gather"):
                start = time.process_time()
                step()
                taken[way] = time.process_time() - start
        if turn:
            ratios.append(taken["mapped"] / taken["loaded"])
    return [figure(f"{name}: step, mapped / loaded", ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help="be one of the processes")
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one[0]), arguments.one[1])
        return
    quiet()
    figures = []
    for name, folder in FOLDERS.items():
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(folder(print), Path(place) / "model"))
            file = (copy / "model.safetensors").read_bytes()
            figures += memories(name, copy) + seconds(name, copy, arguments.rounds)
            assert (copy / "model.safetensors").read_bytes() == file
            figures.append(figure(f"{name}: the file", [len(file) / 2**20], unit="MiB"))
    show(figures)
    write("memory", "mmap_base", {"setting": SETTING, "processes": PROCESSES, "figures": figures})


if __name__ == "__main__":
    main()
