"""Whether one learning rate suits every budget and every batch.

    python -m benchmarks.accuracy.step_law                          # resumable; a run takes one to two CPU-minutes
    python -m benchmarks.accuracy.step_law --task tweets --seeds 0
    python -m benchmarks.accuracy.step_law --show                   # how far the default is from the best, by exponent

``taskedge`` supports of 0.01 to 3 % of the model, in batches of 16, of 0.1 % in batches of 8 and 32, of entries chosen
over the whole model, and of blocks, train on the rows of compare.py and are judged on its validation rows. The head has
one rate for all. The walk over the body's rates begins at the default and goes on to better neighbors until the best is
no edge.

A step is divided by K^e, with K entries in the neuron. K is nearly the same in all neurons of a support, so that a run
at rate r and exponent e is also one at rate r K^(f - e) and exponent f: runs at one exponent tell about all. Where some
neurons have no entry, a step is also divided by the share of those that have one. The first runs did without, and are
runs at other rates with it. ``--show`` interpolates the accuracies over the logarithm of the rate.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.accuracy.compare import SHORT, TASKS, Sweep
from benchmarks.accuracy.methods import sparse
from benchmarks.accuracy.protocol import BATCH, LADDER
from benchmarks.accuracy.rivals import Rival
from benchmarks.accuracy.sweep import quiet
from benchmarks.record import results
from taskedge.forms import STEP_EXPONENT
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("step_law/",)

DEVELOPMENT = ("question-types", "tweets")
DEFAULT_LR = TrainerConfig().lr
HEAD_LR = 3e-2
EXPONENTS = (0.0, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0)
ONE_EACH = 0.0913
"""Share of MiniLM, in percent, of one entry per neuron."""


@dataclass(frozen=True)
class Setting:
    """A support and a batch; ``entries`` are those of a neuron that has any."""

    options: Mapping[str, Any]
    batch_size: int = BATCH
    entries: float = 1.0


WITH_SHARE = ", steps by the share of neurons"
"""End of a setting's name in runs whose steps are divided by the share of neurons that have entries."""
FEW = (0.01, 0.03)
"""Percent of supports of less than one entry per neuron."""
SETTINGS = {
    **{f"{share:g}% in batches of {BATCH}{WITH_SHARE}": Setting({"budget": f"{share}%"}) for share in FEW},
    **{
        f"{share:g}% in batches of {BATCH}": Setting({"budget": f"{share}%"}, entries=max(1.0, share / ONE_EACH))
        for share in (0.1, 0.3, 1, 3)
    },
    **{f"0.1% in batches of {size}": Setting({"budget": "0.1%"}, batch_size=size) for size in (8, 32)},
    f"0.09%, global, in batches of {BATCH}": Setting({"allocation": "global"}, entries=2.2),
    f"32 rows x 32 columns in batches of {BATCH}": Setting(
        {"budget": None, "allocation": "block", "max_rows": 32, "max_columns": 32}, entries=32
    ),
}

Curves = Mapping[str, Mapping[str, Mapping[float, float]]]
"""Setting -> task -> body rate -> validation accuracy, mean over the seeds."""


def walk(sweep: Sweep, name: str, seed: int) -> None:
    """Run a setting at the default rate and at its neighbors until the best has worse ones on both sides."""
    rival = Rival(sparse("taskedge", **SETTINGS[name].options), DEFAULT_LR)
    found: dict[int, float] = {}

    def try_at(place: int) -> None:
        if 0 <= place < len(LADDER) and place not in found:
            run = sweep.run(name, rival, (LADDER[place], HEAD_LR), seed, SHORT, "", test=False)
            found[place] = run["validation"]

    try_at(LADDER.index(DEFAULT_LR))
    while True:
        best = max(found, key=lambda place: found[place])
        known = len(found)
        try_at(best - 1)
        try_at(best + 1)
        if len(found) == known:
            return


def curves(folder: Path) -> Curves:
    """Return the accuracies on file in ``folder``."""
    found: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(folder.glob("*.jsonl")):
        task = path.stem
        for line in path.read_text().splitlines():
            run = json.loads(line)
            setting, rate = run["method"], run["body_lr"]
            percent = float(setting.partition("%")[0]) if "%" in setting else 100.0
            if percent in FEW and not setting.endswith(WITH_SHARE):  # the first runs
                setting, rate = setting + WITH_SHARE, rate * percent / ONE_EACH
            found[setting][task][rate].append(run["validation"])
    return {
        setting: {task: {rate: mean(seeds) for rate, seeds in sorted(by.items())} for task, by in tasks_.items()}
        for setting, tasks_ in found.items()
    }


def at(by_rate: Mapping[float, float], rate: float) -> float:
    """Return the accuracy at a rate, interpolated between measured ones; that of the edge beyond."""
    places = [math.log(measured) for measured in by_rate]
    return float(np.interp(math.log(rate), places, list(by_rate.values())))


def distances(found: Curves, exponent: float) -> dict[str, float]:
    """Return by how much the default rate is behind the best, in the mean of the tasks, for each setting.

    A setting without three rates on every development task is left out.
    """
    behind = {}
    for setting, tasks in found.items():
        if any(len(tasks.get(task, ())) < 3 for task in DEVELOPMENT):
            continue
        rate = DEFAULT_LR * SETTINGS[setting].entries ** (STEP_EXPONENT - exponent)
        rates = sorted(set.intersection(*(set(by) for by in tasks.values())) | {rate})
        means = {tried: mean(at(by, tried) for by in tasks.values()) for tried in rates}
        behind[setting] = max(means.values()) - means[rate]
    return behind


def main() -> None:
    """Run the sweep, or show what is on file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(DEVELOPMENT))
    parser.add_argument("--settings", choices=SETTINGS, nargs="+", default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if arguments.show:
        found = curves(results("accuracy") / "step_law")
        for setting, tasks in found.items():
            for task, by in tasks.items():
                shown = "  ".join(f"{rate:g}: {100 * accuracy:.1f}" for rate, accuracy in by.items())
                print(f"{setting}, {task}: {shown}")
        for exponent in EXPONENTS:
            behind = distances(found, exponent)
            print(f"{exponent:4.2f}  " + "  ".join(f"{setting}: {100 * d:.1f}" for setting, d in behind.items()))
        return
    quiet()
    for seed in arguments.seeds:
        for name in arguments.settings:
            for task in arguments.task:
                walk(Sweep(task, arguments.device, "step_law", SETTINGS[name].batch_size), name, seed)


if __name__ == "__main__":
    main()
