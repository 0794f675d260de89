"""Memory and time of a training step on every rung: by depth, recomputed, in micro-batches, by turns, zeroth order.

    python -m benchmarks.memory.memory_options  # some 15 minutes on one idle core

Memory is the peak of the resident set over two steps less that of the process with the model loaded and idle; what the
math libraries hold after a first forward pass, some 80 MiB, so counts for all ways alike. Each way has a process of its
own, and freed tensors go back to the system at once (``return_freed_memory``), but where it says "as malloc pleases".
Beside it the bytes that autograd saves for the backward pass (a selective checkpoint holds others). Time is CPU time,
the ratios taken within a round. The batch is 32 x 128 for all: a rung may cut it, but the step is that of all 32.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import taskedge as te
from benchmarks.cost.saved_bytes import saved_bytes
from benchmarks.cost.workload import DROPOUT, METHODS, ROWS, SETTING, Batch, set_dropout, setup, trained
from benchmarks.record import figure, rerun, show, write
from taskedge.backbone.candidates import head_parameters
from taskedge.forms.kernels import force_kernel
from taskedge.profiling.process_memory import peak_bytes, reset_peak, return_freed_memory
from taskedge.training.memory.mezo import Mezo, parameter_groups

RESULTS = ("memory_options.json",)


@dataclass(frozen=True)
class Way:
    """How a batch is trained on."""

    method: str = "taskedge"
    columns: int | None = None
    """At most so many of each linear's inputs."""
    recompute: str = "none"
    depth: int | None = None
    micro_batch: int = ROWS
    trains: bool = True
    zeroth: bool = False
    returns: bool = True

    @property
    def kernel(self) -> str | None:
        """What ``tune`` takes on this rung: numba's compiler is some 100 MB that the others do without."""
        return "gather" if self.zeroth or self.recompute != "none" or self.micro_batch < ROWS else None


WAYS = {
    "inference": Way(trains=False),
    "frozen limit": Way("frozen limit"),
    "LoRA r=8": Way("LoRA r=8"),
    "taskedge": Way(),
    "depth 2": Way(depth=2),
    "recompute inputs": Way(recompute="inputs"),
    "recompute blocks": Way(recompute="blocks"),
    "recompute blocks, 32 columns": Way(recompute="blocks", columns=32),
    "micro-batch 8": Way(micro_batch=8),
    "recompute blocks, micro-batch 16": Way(recompute="blocks", micro_batch=16),
    "recompute blocks, micro-batch 8": Way(recompute="blocks", micro_batch=8),
}
WAYS |= {
    "mezo": Way(zeroth=True),
    "LoRA r=8, as malloc pleases": Way("LoRA r=8", returns=False),
}
TIMED = [name for name, way in WAYS.items() if way.returns]
RUNG = "recompute blocks"
BARS = {("LoRA r=8", "memory"): 0.35, ("frozen limit", "step"): 1.45, ("inference", "memory"): 1.5}


def prepare(way: Way, model: nn.Module, calibration: list[Batch]) -> nn.Module:
    if way.depth is not None or way.columns is not None:
        support = te.select(model, calibration, per_neuron=1, depth=way.depth, max_columns=way.columns)
        return te.install(model, support).train()
    return METHODS[way.method](model, calibration).train() if way.trains else model.eval()


def step_of(way: Way, model: nn.Module, batch: Batch) -> Callable[[], None]:
    """One step on the whole batch, or a forward pass over it."""
    if not way.trains:

        def infer() -> None:
            with torch.inference_mode():
                model(**batch)

        return infer
    if way.zeroth:
        mezo = Mezo(parameter_groups(model.eval(), head_parameters(model)), lr=1e-4)

        def descend() -> None:
            mezo.probe(lambda: model(**batch).loss)
            mezo.step()

        return descend
    optimizer = torch.optim.AdamW(trained(model), lr=1e-4)
    places = torch.arange(ROWS).split(way.micro_batch)
    parts = [{key: value[place] for key, value in batch.items()} for place in places]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with te.recomputing(model, way.recompute):
            for part in parts:
                (model(**part).loss / len(parts)).backward()
        optimizer.step()

    return step


def measure_memory(name: str, dropout: float) -> dict[str, int]:
    """Bytes of one way, in this process."""
    way = WAYS[name]
    if way.returns:
        return_freed_memory()
    base, calibration = setup()
    device = torch.device("cpu")
    reset_peak(device)
    idle = peak_bytes(device)
    model = prepare(way, base, calibration[:2])  # a selection from two batches will do
    set_dropout(model, dropout)
    step = step_of(way, model, calibration[0])
    reset_peak(device)
    with force_kernel(way.kernel) if way.kernel else nullcontext():
        for _ in range(2):
            step()
    peak = peak_bytes(device) - idle
    if way.zeroth or not way.trains:
        return {"memory": peak, "saved": 0}
    part = {key: value[: way.micro_batch] for key, value in calibration[0].items()}
    with te.recomputing(model, way.recompute):
        return {"memory": peak, "saved": saved_bytes(model, part)}


def memory(rounds: int) -> dict[float, dict[str, list[dict[str, int]]]]:
    found: dict[float, dict[str, list[dict[str, int]]]] = {dropout: {name: [] for name in WAYS} for dropout in DROPOUT}
    for _ in range(rounds):
        for dropout in DROPOUT:
            for name in WAYS:
                command = rerun("--one", name, "--dropout", str(dropout))
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[dropout][name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, dropout, found[dropout][name][-1], flush=True)
    return found


def seconds(rounds: int) -> dict[float, dict[str, list[float]]]:
    """CPU seconds of a step, rounds in random order; the first round is not counted."""
    import copy

    return_freed_memory()
    base, calibration = setup()
    models = {name: prepare(way, copy.deepcopy(base), calibration) for name, way in WAYS.items() if way.returns}
    steps = {name: step_of(WAYS[name], models[name], calibration[0]) for name in TIMED}
    taken: dict[float, dict[str, list[float]]] = {dropout: {name: [] for name in TIMED} for dropout in DROPOUT}
    order, shuffle = list(TIMED), random.Random(0).shuffle
    for turn in range(rounds + 1):
        for dropout in DROPOUT:
            shuffle(order)
            for name in order:
                set_dropout(models[name], dropout)
                with force_kernel(WAYS[name].kernel or "numba"):
                    start = time.process_time()
                    steps[name]()
                    if turn:
                        taken[dropout][name].append(time.process_time() - start)
        print(f"round {turn} of {rounds}", flush=True)
    return taken


def summary(held: dict[str, list[dict[str, int]]], taken: dict[str, list[float]]) -> list[dict[str, Any]]:
    def steps(ours: str, other: str) -> list[float]:
        return [one / two for one, two in zip(taken[ours], taken[other], strict=True)]

    def memories(ours: str, other: str) -> list[float]:
        return [one["memory"] / two["memory"] for one, two in zip(held[ours], held[other], strict=True)]

    figures = []
    for name in WAYS:
        for other in ("LoRA r=8", "inference"):
            bar = BARS[other, "memory"] if name.startswith(RUNG) else None
            figures.append(figure(f"memory: {name} / {other}", memories(name, other), bar=bar))
        if name in TIMED:
            bar = BARS["frozen limit", "step"] if name.startswith(RUNG) else None
            figures.append(figure(f"step: {name} / frozen limit", steps(name, "frozen limit"), bar=bar))
        figures.append(figure(f"memory: {name}", [one["memory"] / 2**20 for one in held[name]], unit="MiB"))
        if WAYS[name].trains and not WAYS[name].zeroth and WAYS[name].recompute != "inputs":
            figures.append(figure(f"saved bytes: {name}", [one["saved"] / 2**20 for one in held[name]], unit="MiB"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=list(WAYS), help="print the memory of one way as JSON")
    parser.add_argument("--dropout", type=float, default=0.1, help="of that one")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_memory(arguments.one, arguments.dropout)))
        return
    held, taken = memory(rounds=1), seconds(arguments.rounds)
    figures = [line | {"dropout": dropout} for dropout in DROPOUT for line in summary(held[dropout], taken[dropout])]
    show(figures)
    write("memory", "memory_options", {"setting": f"{SETTING}; AdamW", "rounds": arguments.rounds, "figures": figures})


if __name__ == "__main__":
    main()
