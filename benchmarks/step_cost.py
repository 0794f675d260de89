"""What a training step costs beside the frozen limit, PEFT's methods and full fine-tuning.

    python benchmarks/step_cost.py            # some 10 minutes on one core

CPU time of the process. Every method trains its own copy of one base on the same batch; a round runs one step of each
in random order, and the ratios are taken within a round, so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from common import figure, show, write
from torch import nn
from workload import SETTING, Batch, setup, trained, variants

from taskedge.forms.kernels import using

KERNELS: dict[str, tuple[str, str]] = {  # what is timed: the method, and the kernel that it runs with
    "taskedge, numba kernel": ("taskedge", "numba"),
    "taskedge, thin kernel": ("taskedge", "thin"),
    "magnitude, numba kernel": ("magnitude", "numba"),
    "magnitude, thin kernel": ("magnitude", "thin"),
    "random, numba kernel": ("random", "numba"),
    "random, thin kernel": ("random", "thin"),
}
BARS = [
    ("taskedge, numba kernel", "frozen limit", 1.06),
    ("taskedge, thin kernel", "frozen limit", 1.15),
    ("taskedge, numba kernel", "LoRA r=8", 0.85),
    ("taskedge, numba kernel", "SHiRA r=1", 0.75),
    ("taskedge, numba kernel", "Super-Tuning", 0.75),
    ("taskedge, numba kernel", "full", 0.72),
]


def step_of(model: nn.Module, batch: Batch, kernel: AbstractContextManager[None]) -> Callable[[], None]:
    """One training step: forward, backward, AdamW."""
    optimiser = torch.optim.AdamW(trained(model), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        optimiser.step()

    def with_kernel() -> None:
        with kernel():
            step()

    return with_kernel


def measure(rounds: int, discard: int) -> dict[str, list[float]]:
    """CPU seconds of each step by method, round by round."""
    base, calibration = setup()
    models = variants(base, calibration)
    kernels = {name: (model, lambda kernel=kernel: using(kernel)) for name, (model, kernel) in KERNELS.items()}
    plain = {name: (name, nullcontext) for name in models if name not in ("taskedge", "magnitude", "random")}
    steps = {
        name: step_of(models[model], calibration[0], kernel) for name, (model, kernel) in (kernels | plain).items()
    }
    order = list(steps)
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for done in range(discard + rounds):
        shuffle(order)
        for name in order:
            start = time.process_time()
            steps[name]()
            if done >= discard:
                seconds[name].append(time.process_time() - start)
        print(f"round {done + 1} of {discard + rounds}", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--discard", type=int, default=2, help="rounds before, not counted")
    arguments = parser.parse_args()
    seconds = measure(arguments.rounds, arguments.discard)

    def ratio(ours: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[ours], seconds[other], strict=True)]

    barred = [figure(f"step: {ours} / {other}", ratio(ours, other), bar=bar) for ours, other, bar in BARS]
    asked = {(ours, other) for ours, other, _ in BARS}
    others = [name for name in seconds if name != "frozen limit" and (name, "frozen limit") not in asked]
    informative = [figure(f"step: {name} / frozen limit", ratio(name, "frozen limit")) for name in others]
    absolute = [figure(f"step: {name}", values, unit="s") for name, values in seconds.items()]
    figures = barred + informative + absolute
    show(figures)
    write("step_cost", {"setting": SETTING, "figures": figures, "cpu_seconds": seconds})


if __name__ == "__main__":
    main()
