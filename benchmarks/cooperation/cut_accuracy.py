"""Accuracy over the cut: caps on rows and columns, an eighth of the modules, codings, and noise; MiniLM-L6, 3 seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.cooperation.cut_accuracy  # resumable; hours, the first tells most
    python -m benchmarks.cooperation.cut_accuracy --show             # the table of what is on file

In fp32 with all modules and without noise, a run over the cut has the values of `taskedge tune` (docs/cut.md), so the
caps are measured with `tune`. The tasks are six kinds of questions (TREC) and the sentiment of tweets, with 640 rows to
train and 600 to test, two epochs in batches of 16, and texts of at most 32 tokens. The learning rates of each cap, and
that of an eighth of the modules, are searched on the questions with seed 0: from the default to better neighbors, by
the accuracy on 300 other rows. The other ways have that of 32 rows x 32 columns. Each run is a line of the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.cooperation.cut_setting import Cut, quiet
from benchmarks.record import machine, results
from taskedge.demo.assets import question_types, read_rows, split, tweets, write_rows
from taskedge.training.inference import prepare_inference
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

RESULTS = ("cut_accuracy.jsonl",)
SEEDS = (0, 1, 2)
SIZES = {"train": 640, "validation": 300, "test": 600}
EPOCHS, BATCH, MAX_LENGTH = 2.0, 16, 32
TASKS: dict[str, Callable[[Callable[[str], None]], Path]] = {"questions": question_types, "tweets": tweets}
SEARCHED = "questions"
"""The task on which rates are searched."""
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
DEFAULT = RATES.index(3e-2)
BLOCK = {"columns": 32, "max_rows": 32}
CAPS: dict[str, dict[str, Any]] = {
    "32 rows x 32 columns": BLOCK,
    "32 columns": {"columns": 32},
    "no cap, 2 entries per neuron": {"per_neuron": 2},
}
"""Ways of `tune`. The block has 1.8 entries per neuron in the mean of all, so the last has about as many."""
OF_BLOCK = next(iter(CAPS))
OVER_CUT: dict[str, dict[str, Any]] = {
    "an eighth of the modules": {"active_share": 1 / 8},
    "bf16": {"coding": "bf16"},
    "float8": {"coding": "float8"},
    "int8": {"coding": "int8"},
    "noise 0.001": {"noise": 0.001, "clip_inputs": 100.0, "clip_gradient": 0.02},
    "noise 0.01": {"noise": 0.01, "clip_inputs": 100.0, "clip_gradient": 0.02},
    "noise 100": {"noise": 100.0, "clip_inputs": 100.0, "clip_gradient": 0.02},
}
"""Ways over the cut, with 32 rows x 32 columns."""
EIGHTH = "an eighth of the modules"
RATED = (*CAPS, EIGHTH)
"""Ways whose rates are searched."""
LONG: dict[str, tuple[float, dict[str, Any]]] = {
    f"{way}, {epochs} epochs": (float(epochs), settings)
    for epochs in (8, 32)
    for way, settings in ((OF_BLOCK, {}), (EIGHTH, OVER_CUT[EIGHTH]))
}
"""Epochs and settings of longer runs: kill and revive is for these. The first way is one of `tune`."""
CODED, NOISY = ["bf16", "float8", "int8"], [way for way in OVER_CUT if way.startswith("noise")]
ORDER = [
    *((way, seed, task) for seed in SEEDS for way in CAPS for task in TASKS),
    *((EIGHTH, seed, task) for seed in SEEDS for task in TASKS),
    *((way, SEEDS[0], task) for way in CODED for task in TASKS),
    *((way, SEEDS[0], SEARCHED) for way in LONG),
    *((way, SEEDS[0], task) for way in NOISY for task in TASKS),
    *((way, seed, task) for way in (*CODED, *LONG, *NOISY) for seed in SEEDS for task in TASKS),
]
"""Runs, with those that tell most first; a run that is on file is not made again."""


def data(task: str, seed: int, folder: Path) -> dict[str, Path]:
    """Write the rows of a task."""
    parts = split(read_rows(TASKS[task](print)), SIZES, seed=seed)
    return {part: write_rows(folder / f"{task}-{seed}-{part}.csv", rows) for part, rows in parts.items()}


def once(cut: Cut, task: str, seed: int, way: str, rate: float) -> dict[str, Any]:
    """Train and measure one run."""
    files = data(task, seed, cut.folder)
    changes: dict[str, Any] = {"seed": seed, "batch_size": BATCH, "epochs": EPOCHS, "lr": rate}
    changes |= {"max_length": MAX_LENGTH}
    lines: list[str] = []
    log: Callable[[str], None] = lines.append
    line: dict[str, Any] = {"task": task, "seed": seed, "way": way, "lr": rate}
    if way in LONG:
        changes["epochs"] = LONG[way][0]
    if way in CAPS or (way in LONG and not LONG[way][1]):
        config: TuneConfig = cut.config(files["train"], **changes, **CAPS.get(way, BLOCK))
        line["entries"] = tune(config, force=True, progress=False, log=quiet).entries
    else:
        settings = LONG[way][1] if way in LONG else OVER_CUT[way]
        if settings.get("noise"):
            changes["clip"] = 0.0
        config = cut.config(files["train"], **changes, **BLOCK)
        over = cut.run(config, log=log, **settings)
        line |= {"entries": over.result.entries, "steps": over.result.steps, "numbers": over.result.counted.numbers}
        if told := next((said for said in reversed(lines) if "ε = " in said), ""):
            line["told"] = told
    if way in RATED and (task, seed) == (SEARCHED, SEEDS[0]):
        line["validation"] = accuracy(config, files["validation"])
    return line | {"accuracy": accuracy(config, files["test"])}


def accuracy(config: TuneConfig, data: Path) -> float:
    """Return the accuracy of the trained delta on rows."""
    measures = prepare_inference(config.out, data, model=config.model, answers=True, log=quiet).evaluate()
    assert measures["accuracy"] is not None
    return measures["accuracy"]


class Runs:
    """The runs on file, and new ones."""

    def __init__(self, cut: Cut) -> None:
        self._cut, self._path, self._about = cut, results("cooperation") / "cut_accuracy.jsonl", machine()
        self.lines = [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def at(self, task: str, seed: int, way: str, rate: float) -> dict[str, Any]:
        """Return a run, from the file or measured now."""
        for line in self.lines:
            if (line["task"], line["seed"], line["way"], line["lr"]) == (task, seed, way, rate):
                return line  # type: ignore[no-any-return]
        line = once(self._cut, task, seed, way, rate)
        print(line, flush=True)
        line |= {"machine": self._about}
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def rate(self, way: str) -> float:
        """Return the rate of a cap: the best on the validation rows, with worse ones on both sides."""
        found: dict[int, float] = {}
        best = DEFAULT
        while True:
            known = len(found)
            for place in (best, best - 1, best + 1):
                if 0 <= place < len(RATES) and place not in found:
                    found[place] = self.at(SEARCHED, SEEDS[0], way, RATES[place])["validation"]
            if len(found) == known:
                return RATES[best]
            best = max(found, key=lambda place: (found[place], -abs(place - DEFAULT)))


def show(lines: list[dict[str, Any]], rates: dict[str, float]) -> None:
    """Print accuracies by way, and the numbers that crossed."""
    for task in TASKS:
        for way in (*CAPS, *OVER_CUT, *LONG):
            rate = rates.get(way, rates[OF_BLOCK])
            found = [line for line in lines if (line["task"], line["way"], line["lr"]) == (task, way, rate)]
            if found:
                each = " ".join(f"{line['accuracy']:.3f}" for line in found)
                mean = statistics.mean(line["accuracy"] for line in found)
                numbers = statistics.mean(line.get("numbers", 0) for line in found)
                print(f"{task:10} {way:30} {rate:<6g} {mean:.3f}  {each}  {numbers:,.0f} numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="measure nothing but the rates that are missing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Cut(Path(folder)))
        rates = {way: runs.rate(way) for way in RATED}
        if not arguments.show:
            for way, seed, task in ORDER:
                runs.at(task, seed, way, rates.get(way, rates[OF_BLOCK]))
    show(runs.lines, rates)


if __name__ == "__main__":
    main()
