"""What runs of the accuracy benchmark say: each method at its own rate, and how far two methods lie apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

import numpy as np

TASKS = {
    "movie-reviews": "Movie reviews (2 classes)",
    "question-types": "TREC questions (50 classes)",
    "tweets": "Tweets (2 classes)",
    "sms-spam": "SMS spam (2 classes)",
}
TEST_ROWS = 1500
"""Test rows of a task whose runs do not state their number."""

Run = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A method on a task, at the learning rate with its best validation accuracy on seed 0 (ties to the lower)."""

    method: str
    lr: float
    runs: list[Run]
    """All seeds at that rate, ascending."""

    @property
    def tests(self) -> list[float]:
        return [run["test"] for run in self.runs]

    def average(self, fact: str) -> float | None:
        """Over seeds; None where the method has no such fact."""
        known = [run[fact] for run in self.runs if fact in run]
        return mean(known) if known else None


def choose(runs: Sequence[Run]) -> list[Chosen]:
    """Every method of one task at its own rate, in the order in which they were run."""
    chosen = []
    for method in dict.fromkeys(run["method"] for run in runs):
        tried = [run for run in runs if run["method"] == method and run["seed"] == 0]
        if tried:
            lr = max(tried, key=lambda run: (run["validation"], -run["lr"]))["lr"]
            own = [run for run in runs if run["method"] == method and run["lr"] == lr]
            chosen.append(Chosen(method, lr, sorted(own, key=lambda run: run["seed"])))
    return chosen


def read(folder: Path) -> dict[str, list[Run]]:
    """The runs of every task that has any, by task."""
    paths = {task: folder / f"{task}.jsonl" for task in TASKS}
    read = {task: path.read_text().splitlines() for task, path in paths.items() if path.exists()}
    return {task: [json.loads(line) for line in lines] for task, lines in read.items() if lines}


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one method less that of another, meant over tasks."""

    mean: float
    half: float
    """Half the width of the 95 % interval."""

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f}"

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half


def difference(ones: Sequence[Chosen], others: Sequence[Chosen]) -> Difference | None:
    """The mean of paired differences over tasks, each task's over its seeds; None where they share no seeds.

    Both lists hold one method on the same tasks in the same order. The tasks are taken as given; seeds and test rows
    are samples. The variance of a task's difference is that over seeds (of which there are few: Student's t at their
    degrees of freedom) plus that over test rows, where runs tell which rows they got right.
    """
    from scipy import stats

    means, variances, freedom = [], [], 0
    for one, other in zip(ones, others, strict=True):
        by_seed = {run["seed"]: run for run in other.runs}
        pairs = [(run, by_seed[run["seed"]]) for run in one.runs if run["seed"] in by_seed]
        if len(pairs) < 2:
            return None
        gaps = [run["test"] - against["test"] for run, against in pairs]
        means.append(mean(gaps))
        variances.append(variance(gaps) / len(gaps) + _over_rows(pairs))
        freedom += len(gaps) - 1
    if not means:
        return None
    half = float(stats.t.ppf(0.975, freedom)) * sum(variances) ** 0.5 / len(means)
    return Difference(mean(means), half)


def _over_rows(pairs: Sequence[tuple[Run, Run]]) -> float:
    """Variance of the mean over test rows of the seeds' mean difference in being right."""
    if not all("test_hits" in run for pair in pairs for run in pair):
        return 0.0
    gaps = [hits(run).astype(float) - hits(against) for run, against in pairs]
    return float(np.mean(gaps, axis=0).var(ddof=1) / len(gaps[0]))


def hits(run: Run) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [test rows]: which were labeled right."""
    packed = np.frombuffer(bytes.fromhex(run["test_hits"]), dtype=np.uint8)
    return np.unpackbits(packed)[: run.get("test_rows", TEST_ROWS)].astype(bool)
