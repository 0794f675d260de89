"""What diff pruning finds with penalties on gates of matrices: the paper's product, its code's sum, and no such gates.

    python -m benchmarks.accuracy.gate_penalties                       # half an hour a task on one core; resumable
    python -m benchmarks.accuracy.gate_penalties --task tweets --show

Gates train on all weights of MiniLM's linears for a budget of 0.5 %, at the default penalty, in as many epochs as the
run that trains the support afterwards. All rates are fixed: only where the support lies differs. Validation rows alone
are looked at.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy.compare import SHORT, Sweep
from benchmarks.accuracy.finding import LARGEST_SHARE, LearnedSupport, by_gates
from benchmarks.accuracy.rivals import Rival
from benchmarks.accuracy.sweep import append, quiet
from benchmarks.record import machine, results
from taskedge.errors import InputError
from taskedge.training.gates import GateConfig

RESULTS = ("gate_penalties/",)

FOLDER = "gate_penalties"
TASKS = ("tweets", "question-types")
SEEDS = (0, 1)
SHARE = LARGEST_SHARE
RATES = (3e-2, 1e-2)
WAYS = {
    "sum": GateConfig(group_penalty="sum"),
    "product": GateConfig(group_penalty="product"),
    "no gates of matrices": GateConfig(structured=False),
}


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def nothing(way: str, seed: int) -> dict[str, Any]:
    """Return the run of a way that found no entries."""
    rates = {"body_lr": RATES[0], "head_lr": RATES[1]}
    key = {"method": way, "variant": "", "budget": SHORT.name, **rates, "seed": seed, "with_test": False}
    return key | {"validation": None, "entries": 0, "linears": 0}


def show() -> None:
    """Print accuracy, entries and linears of each way."""
    for path in sorted((results("accuracy") / FOLDER).glob("*.jsonl")):
        by_way = defaultdict(list)
        for run in lines(path):
            by_way[run["method"]].append(run)
        for way, runs in by_way.items():
            entries, linears = (mean(run[of] for run in runs) for of in ("entries", "linears"))
            found = " ".join("-" if run["validation"] is None else f"{run['validation']:.3f}" for run in runs)
            print(f"{path.stem:16} {way:22} {found} {entries:10,.0f} entries in {linears:.1f} linears")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if arguments.show:
        show()
        return
    quiet()
    for task in arguments.task:
        sweep = Sweep(task, folder=FOLDER)
        for seed in SEEDS:
            for way, gates in WAYS.items():
                find = LearnedSupport(by_gates(gates, tries=1), f"{way}, {SHARE}", SHARE)
                try:
                    sweep.run(way, Rival(find, RATES[0]), RATES, seed, SHORT, "", test=False)
                except InputError as error:  # all gates are closed: nothing can be installed
                    print(task, way, seed, error)
                    append(sweep.path, {"task": task, **nothing(way, seed), "machine": machine()})
        sweep.kept.forget()
    show()


if __name__ == "__main__":
    main()
