"""What a training step costs beside the frozen limit, PEFT's methods and full fine-tuning.

    python -m benchmarks.cost.step_cost  # some 12 minutes on one idle core

CPU time of the process. Every method trains its own copy of one base on the same batch; a round runs one step of each
in random order, and the ratios are taken within a round, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.cost.workload import DROPOUT, SETTING, Batch, set_dropout, setup, trained, variants
from benchmarks.record import figure, show, write
from taskedge.forms.kernels import force_kernel

RESULTS = ("step_cost.json",)

TIMED: dict[str, tuple[str, str | None]] = {  # what is timed: the method, and the kernel that it runs with
    "frozen limit": ("frozen limit", None),
    "taskedge, numba kernel": ("taskedge", "numba"),
    "taskedge, gather kernel": ("taskedge", "gather"),
    "LoRA r=8": ("LoRA r=8", None),
    "SHiRA r=1": ("SHiRA r=1", None),
    "Super-Tuning": ("Super-Tuning", None),
    "full": ("full", None),
    "magnitude, numba kernel": ("magnitude", "numba"),
    "magnitude, gather kernel": ("magnitude", "gather"),
    "random, numba kernel": ("random", "numba"),
    "random, gather kernel": ("random", "gather"),
}
BARS = [
    ("taskedge, numba kernel", "frozen limit", 1.06),
    ("taskedge, gather kernel", "frozen limit", 1.15),
    ("taskedge, numba kernel", "LoRA r=8", 0.85),
    ("taskedge, numba kernel", "SHiRA r=1", 0.75),
    ("taskedge, numba kernel", "Super-Tuning", 0.75),
    ("taskedge, numba kernel", "full", 0.72),
]


INFORMATIVE = ("magnitude", "random")
Seconds = dict[str, dict[int, float]]
"""CPU seconds of a step by what is timed and round."""


def step_of(model: nn.Module, batch: Batch, kernel: str | None) -> Callable[[], None]:
    """One training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(trained(model), lr=1e-4)

    def step() -> None:
        with force_kernel(kernel) if kernel else nullcontext():
            optimizer.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
            optimizer.step()

    return step


def measure(rounds: int, discard: int) -> Iterator[dict[float, Seconds]]:
    """CPU seconds by share of dropout, after every round; supports that carry no bar take part in each third."""
    base, calibration = setup()
    models = variants(base, calibration)
    steps = {name: step_of(models[method], calibration[0], kernel) for name, (method, kernel) in TIMED.items()}
    shuffle = random.Random(0).shuffle
    seconds: dict[float, Seconds] = {dropout: {name: {} for name in TIMED} for dropout in DROPOUT}
    for turn in range(-discard, rounds):
        for dropout in DROPOUT:
            order = [name for name in TIMED if turn % 3 == 0 or not name.startswith(INFORMATIVE)]
            shuffle(order)
            for name in order:
                set_dropout(models[TIMED[name][0]], dropout)
                start = time.process_time()
                steps[name]()
                if turn >= 0:
                    seconds[dropout][name][turn] = time.process_time() - start
        if turn >= 0:
            yield seconds


def summary(seconds: Seconds, dropout: float) -> list[dict[str, Any]]:
    """Ratios within a round, those with a bar first."""

    def ratio(ours: str, other: str) -> list[float]:
        return [taken / seconds[other][turn] for turn, taken in seconds[ours].items()]

    figures = [figure(f"step: {ours} / {other}", ratio(ours, other), bar=bar) for ours, other, bar in BARS]
    asked = {ours for ours, other, _ in BARS if other == "frozen limit"}
    others = [name for name in seconds if name != "frozen limit" and name not in asked]
    figures += [figure(f"step: {name} / frozen limit", ratio(name, "frozen limit")) for name in others]
    figures += [figure(f"step: {name}", list(taken.values()), unit="s") for name, taken in seconds.items()]
    return [line | {"dropout": dropout} for line in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--discard", type=int, default=2, help="rounds before, not counted")
    arguments = parser.parse_args()
    figures = []
    for done, seconds in enumerate(measure(arguments.rounds, arguments.discard), start=1):
        figures = [line for dropout in DROPOUT for line in summary(seconds[dropout], dropout)]
        # after each round, since a run is long
        write("cost", "step_cost", {"setting": f"{SETTING}; AdamW", "rounds": done, "figures": figures})
        print(f"round {done} of {arguments.rounds}", flush=True)
    show(figures)


if __name__ == "__main__":
    main()
