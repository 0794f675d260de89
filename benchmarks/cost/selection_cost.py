"""What choosing the entries costs beside the forward passes that it needs anyway.

    python -m benchmarks.cost.selection_cost  # some 3 minutes on one core

CPU time of the process; the two alternate, and each ratio is of neighbors in time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import taskedge as te
from benchmarks.cost.workload import CALIBRATION_BATCHES, SETTING, setup
from benchmarks.record import figure, show, write

RESULTS = ("selection_cost.json",)

BAR = 1.20


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    model, batches = setup()
    model.eval()

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**batch)

    def select() -> None:
        te.select(model, batches, per_neuron=1)

    forward(), select()
    pairs = [(cpu_seconds(select), cpu_seconds(forward)) for _ in range(rounds)]
    figures = [
        figure("selection / its forward passes alone", [ours / alone for ours, alone in pairs], bar=BAR),
        figure("selection", [ours for ours, _ in pairs], unit="s"),
        figure("its forward passes alone", [alone for _, alone in pairs], unit="s"),
    ]
    show(figures)
    setting = f"{SETTING}; {CALIBRATION_BATCHES} calibration batches, rule taskedge, eval mode"
    write("cost", "selection_cost", {"setting": setting, "figures": figures, "cpu_seconds": pairs})


if __name__ == "__main__":
    main()
