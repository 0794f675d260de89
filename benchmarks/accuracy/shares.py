"""Accuracy of the rules that matter from 0.01 % to 1 % of the model.

    python -m benchmarks.accuracy.shares --task tweets  # 60 runs, about half a CPU-minute each
    python -m benchmarks.report.tables                  # the figure from the results

Data, training and seeds are those of accuracy.py. A rule keeps the learning rate that it had there at one entry per
neuron (0.09 %): no share has a search of its own. One run appends one line to results/shares/TASK.jsonl, and a sweep
that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse

from benchmarks.accuracy.methods import SCALED, SHARES, SWEPT, at_share
from benchmarks.accuracy.sweep import SEEDS, TASKS, Sweep, quiet

RESULTS = ("shares/",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--rules", nargs="*", choices=SWEPT, default=SWEPT)
    parser.add_argument("--shares", nargs="*", choices=SHARES, default=SHARES)
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    arguments = parser.parse_args()
    quiet()
    found = Sweep(arguments.task, device=arguments.device)
    rates = {rule: found.best_rate(rule + SCALED) for rule in arguments.rules}
    methods = {f"{rule}, {share}": at_share(rule, share) for rule in arguments.rules for share in arguments.shares}
    sweep = Sweep(arguments.task, methods, folder="shares", device=arguments.device)
    for seed in SEEDS:
        for method in methods:
            sweep.run(method, rates[method.partition(",")[0]], seed)


if __name__ == "__main__":
    main()
