"""Accuracy of the selection rules and their rivals at equal budget, each at its own best learning rate.

    # 5 runs a method, about a CPU-minute each
    python -m benchmarks.accuracy.sweep --task movie-reviews
    python -m benchmarks.accuracy.sweep --task movie-reviews --device cuda --seeds 0 1 2 3 4  # seconds each
    python -m benchmarks.report.tables                                                        # tables from the results

Protocol: training, validation and test rows are drawn once. The learning rate of a method is found on seed 0 by
validation accuracy on one ladder (…, 1e-3, 3e-3, 1e-2, …), climbed until the best rung has a worse one on either side;
two more seeds are run at that rate. Test accuracy counts at that rate only. One run appends one line to
results/accuracy/TASK.jsonl; a sweep that was killed goes on where it stopped, and several may run beside each other.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, set_seed

import taskedge as te
from benchmarks.accuracy.methods import METHODS, Facts, Method
from benchmarks.record import machine, results
from taskedge.demo import assets
from taskedge.training.data.text_data import Row, collator, encode, predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("sweep/",)

LADDER = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
SEEDS = (0, 1, 2)
ROWS = 32
"""In a batch, but for a method that says other. (``taskedge tune`` takes 16, which defaults.py found to be better.)"""


@dataclass(frozen=True)
class Task:
    """A table of labeled texts, and how much of it is used."""

    table: Callable[[], Path]
    longest: int
    """Tokens."""
    epochs: float
    train: int = 1500
    validation: int = 500
    test: int = 1500
    spare: int = 0
    """Rows for choices that are made between runs, at most: those of no other part."""
    base: Callable[[], Path] = lambda: assets.minilm(print)
    """The model that is trained."""

    def parts(self) -> dict[str, list[tuple[str, str]]]:
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = assets.read_rows(self.table())
        if self.spare:
            sizes["spare"] = min(self.spare, len(rows) - sum(sizes.values()))
        return assets.split(rows, sizes, seed=0)


TASKS = {
    "movie-reviews": Task(lambda: assets.movie_reviews(print), longest=48, epochs=2),
    "question-types": Task(lambda: assets.question_types(print, fine=True), longest=24, epochs=4),
    "tweets": Task(lambda: assets.tweets(print), longest=40, epochs=2, train=1000),
    "sms-spam": Task(lambda: assets.sms_spam(print), longest=40, epochs=2, train=800),
}


def append(path: Path, run: Facts) -> None:
    """Adds one line to a file that others may be writing to as well."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(run) + "\n")


class Sweep:
    """All runs of some methods on one task, and the file they are kept in."""

    def __init__(
        self, task: str, methods: Mapping[str, Method] = METHODS, folder: str = "sweep", device: str = "cpu"
    ) -> None:
        self.methods, self.device, settings = methods, device, TASKS[task]
        base, self.epochs = settings.base(), settings.epochs
        parts = settings.parts()
        labels = sorted({label for rows in parts.values() for _, label in rows})
        tokenizer = AutoTokenizer.from_pretrained(base)
        self.rows: dict[str, list[Row]] = {
            part: encode(
                tokenizer, [text for text, _ in rows], [labels.index(label) for _, label in rows], settings.longest
            )
            for part, rows in parts.items()
        }
        self.collate = collator(tokenizer)
        self.base = lambda: AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
        self.task = task
        self.path = results("accuracy") / folder / f"{task}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    @property
    def done(self) -> dict[tuple[str, float, int], Facts]:
        """What is on file, of this sweep and of those beside it."""
        runs = map(json.loads, self.path.read_text().splitlines())
        return {(run["method"], run["lr"], run["seed"]): run for run in runs}

    def run(self, method: str, lr: float, seed: int) -> Facts:
        """One training run, or what is on file of it."""
        on_file = self.done.get((method, lr, seed))
        if on_file is not None:
            return on_file
        set_seed(seed)
        model = self.base().to(self.device)
        batches = [self.collate(self.rows["train"][start : start + ROWS]) for start in range(0, 8 * ROWS, ROWS)]
        model, facts = self.methods[method].prepare(model, batches, seed)
        started = time.process_time()
        default = TrainerConfig(epochs=self.epochs, lr=lr, batch_size=ROWS, seed=seed)
        settings = replace(default, **self.methods[method].fit)
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = train(model, self.rows["train"], self.collate, settings, Path(folder), progress=False)
                loss, steps = done.loss, done.steps
            except te.TaskEdgeError as error:
                print(error)
                loss, steps = None, 0
        seconds = time.process_time() - started
        run: Facts = {"task": self.task, "method": method, "lr": lr, "seed": seed, "loss": loss, "steps": steps}
        for part in ("validation", "test"):
            run[part] = 0.0
            if loss is not None:
                truth = np.array([row["labels"] for row in self.rows[part]])
                hits = predict(model, self.rows[part], self.collate).classes == truth
                run |= {part: float(hits.mean()), f"{part}_hits": np.packbits(hits).tobytes().hex()}  # for paired tests
        run |= facts | {"cpu_seconds": round(seconds, 1), "machine": machine(self.device)}
        append(self.path, run)
        print(f"{method:24} lr {lr:g} seed {seed}: validation {run['validation']:.3f}, {seconds:.0f} s", flush=True)
        return run

    def best_rate(self, method: str) -> float:
        """Climbs the ladder on seed 0 until the best rung has a tried one on either side (or is the ladder's end)."""
        tried = {lr: self.run(method, lr, 0)["validation"] for lr in self.methods[method].rates}
        while True:
            best = max(tried, key=lambda lr: (tried[lr], -lr))
            place = LADDER.index(best)
            missing = [lr for lr in LADDER[max(place - 1, 0) : place + 2] if lr not in tried]
            if not missing:
                return best
            tried[missing[0]] = self.run(method, missing[0], 0)["validation"]


def quiet() -> None:
    """One thread, and no lines but our own."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="at the rate that seed 0 gave")
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    arguments = parser.parse_args()
    quiet()
    sweep = Sweep(arguments.task, device=arguments.device)
    for method in arguments.methods:
        rate = sweep.best_rate(method)
        for seed in arguments.seeds:
            sweep.run(method, rate, seed)


if __name__ == "__main__":
    main()
