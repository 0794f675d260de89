"""What is left of four text tasks when their deltas are merged into one, and of three when one is forgotten.

    python -m benchmarks.combination.merged_tasks              # about 25 CPU-minutes; goes on where it stopped
    python -m benchmarks.combination.merged_tasks --minutes 4  # stop after the first run that ends later than this

Four tasks on all-MiniLM-L6-v2, one entry per neuron of the 36 encoder linears, trained at the default rate. Supports:
by the rule ``taskedge`` on the task's own rows, at random, and disjoint (the rule on the task's own rows, avoiding the
entries of the tasks before it, as ``tune --avoid``). Weight and density of each method are those with the best mean
validation accuracy of the first seed, of six pairs a method; the other seeds use the same. Test rows are looked at
once, at the chosen pairs.

Forgetting: the delta of one task is subtracted from the merged delta (``--subtract``). The pair is the one with the
lowest validation accuracy of that task among those that cost no other task over a point, or the one that costs least.

The deltas lie in a scratch folder, so that a repeated run need not train them again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import taskedge as te
from benchmarks.accuracy.sweep import append, quiet
from benchmarks.record import figure, results, show
from taskedge.delta.combination.importance import entry_importance
from taskedge.demo import assets
from taskedge.selection.support import Support
from taskedge.training.data.text_data import Row, collator, encode, predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("merged_tasks.jsonl",)

SEEDS = (0, 1, 2)
SIZES = {"train": 512, "validation": 96, "test": 250}
LONGEST, EPOCHS, BATCH = 28, 2, 16
FORGOTTEN = ("tweets", "question-types")
"""The tasks that are forgotten, one at a time."""
TABLES: dict[str, Callable[[], Path]] = {
    "movie-reviews": lambda: assets.movie_reviews(print),
    "tweets": lambda: assets.tweets(print),
    "sms-spam": lambda: assets.sms_spam(print),
    "question-types": lambda: assets.question_types(print),
}
SUPPORTS = ("taskedge", "random", "disjoint")
GRID: dict[str, list[tuple[float, float]]] = {
    "arithmetic": [(weight, 1.0) for weight in (0.2, 0.3, 0.5, 0.7, 1.0, 1.3)],
    "selective": [(weight, density) for weight in (0.5, 1.0) for density in (0.25, 0.5, 0.75)],
    "ties": [(weight, density) for weight in (1.0, 1.5) for density in (0.25, 0.5, 0.75)],
    "dare": [(weight, density) for weight in (0.3, 0.5, 0.7) for density in (0.5, 0.8)],
    "breadcrumbs": [(weight, density) for weight in (0.3, 0.5, 0.7) for density in (0.7, 0.9)],
}
"""Pairs of weight and density that are tried on validation rows."""
FORGET_GRID = [("arithmetic", 2.0, 1.0), ("arithmetic", 4.0, 1.0), ("selective", 2.0, 0.5), ("selective", 4.0, 0.5)]
"""Method, weight of the subtracted delta relative to its weight in the merged one, density."""
ALLOWED_LOSS = 0.01
Line = dict[str, Any]


class OutOfTime(Exception):
    """The minutes of ``--minutes`` are over."""


@dataclass(frozen=True)
class TextTask:
    """Rows of one task, its classes and a model with a head for them."""

    name: str
    rows: Mapping[str, list[Row]]
    num_labels: int
    collate: Callable[[list[Row]], dict[str, Tensor]]

    def model(self) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(assets.minilm(print), num_labels=self.num_labels)

    @cached_property
    def evaluated(self) -> Any:
        """The base that deltas are applied to for evaluations."""
        return self.model().eval()

    def batches(self, count: int) -> list[dict[str, Tensor]]:
        return [self.collate(self.rows["train"][start : start + BATCH]) for start in range(0, count * BATCH, BATCH)]

    def accuracy(self, delta: te.Delta, part: str) -> float:
        rows = self.rows[part]
        with te.applied(self.evaluated, delta):
            classes = predict(self.evaluated, rows, self.collate).classes
        return float(np.mean(classes == np.array([row["labels"] for row in rows])))

    def chance(self, part: str) -> float:
        """Share of the most common class."""
        labels = [int(row["labels"]) for row in self.rows[part]]
        return max(map(labels.count, set(labels))) / len(labels)


def read_task(name: str) -> TextTask:
    parts = assets.split(assets.read_rows(TABLES[name]()), SIZES, seed=0)
    labels = sorted({label for rows in parts.values() for _, label in rows})
    tokenizer = AutoTokenizer.from_pretrained(assets.minilm(print))
    rows = {
        part: encode(tokenizer, [text for text, _ in pairs], [labels.index(label) for _, label in pairs], LONGEST)
        for part, pairs in parts.items()
    }
    return TextTask(name, rows, len(labels), collator(tokenizer))


class Experiment:
    """All runs, and the file that holds a line for each."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.ends = folder, time.monotonic() + 60 * minutes
        self.tasks = {name: read_task(name) for name in TABLES}
        self.path = results("combination") / "merged_tasks.jsonl"
        self.path.touch()
        self._loaded: dict[tuple[str, int, str], te.Delta] = {}
        self._importance: dict[tuple[str, int, str], dict[str, Tensor]] = {}

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def run(self, key: Line, measure: Callable[[], Line]) -> Line:
        """Return the line on file with these values; measure and append it first if there is none."""
        for line in self.lines:
            if all(line.get(name) == value for name, value in key.items()):
                return line
        if time.monotonic() > self.ends:
            raise OutOfTime
        started = time.process_time()
        line = key | measure()
        line["cpu_seconds"] = round(time.process_time() - started, 1)
        append(self.path, line)
        print(line, flush=True)
        return line

    # --- deltas of one task -------------------------------------------------------------------------------------------

    def delta(self, supports: str, seed: int, name: str) -> te.Delta:
        """The trained delta of one task, from the scratch folder if it is there."""
        key = (supports, seed, name)
        if key not in self._loaded:
            path = self.folder / f"{supports}-{seed}-{name}.safetensors"
            if not path.exists():
                self._train(supports, seed, name, path)
            self._loaded[key] = te.load(path)
        return self._loaded[key]

    def _train(self, supports: str, seed: int, name: str, path: Path) -> None:
        task = self.tasks[name]
        set_seed(seed)
        model = task.model()
        te.install(model, self._support(model, supports, seed, name))
        config = TrainerConfig(epochs=EPOCHS, batch_size=BATCH, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            train(model, task.rows["train"], task.collate, config, Path(folder), progress=False)
        te.save(te.extract(model), path)

    def _support(self, model: Any, supports: str, seed: int, name: str) -> Support:
        own = self.tasks[name].batches(8)
        index = list(self.tasks).index(name)
        if supports == "random":
            return te.select(model, own, per_neuron=1, rule="random", seed=10 * seed + index)
        earlier = list(self.tasks)[:index] if supports == "disjoint" else []
        avoid = [self.delta(supports, seed, other).linears for other in earlier]
        return te.select(model, own, per_neuron=1, rule="taskedge", seed=seed, avoid=avoid)

    def single(self, supports: str, seed: int, name: str) -> Line:
        """Accuracy of one task with its own delta, and with its head on the unchanged base."""
        task = self.tasks[name]

        def measure() -> Line:
            delta = self.delta(supports, seed, name)
            head = replace(delta, linears={})
            found = {part: task.accuracy(delta, part) for part in ("validation", "test")}
            return found | {"head_alone": task.accuracy(head, "test"), "chance": task.chance("test")}

        return self.run({"part": "single", "supports": supports, "seed": seed, "task": name}, measure)

    def overlap(self, supports: str, seed: int) -> Line:
        """Share of entries that two tasks' deltas have in common, for each pair."""

        def measure() -> Line:
            shares = {}
            for one, other in combinations(self.tasks, 2):
                first, second = (self.delta(supports, seed, name) for name in (one, other))
                common = sum(
                    int(torch.isin(linear.positions, second.linears[key].positions).sum())
                    for key, linear in first.linears.items()
                )
                shares[f"{one}, {other}"] = common / first.num_entries
            return {"shares": shares}

        return self.run({"part": "overlap", "supports": supports, "seed": seed}, measure)

    # --- merging ------------------------------------------------------------------------------------------------------

    def combined(
        self, supports: str, seed: int, method: str, weight: float, density: float, forgotten: str = "",
        factor: float = 0.0, merged_weight: float = 1.0,
    ) -> te.Delta:  # fmt: skip
        """The four deltas merged; with ``forgotten``, merged by arithmetic, minus that task's delta."""
        base = self.tasks["tweets"].evaluated
        deltas = [self.delta(supports, seed, name) for name in self.tasks]
        names = list(self.tasks)
        if not forgotten:
            scores = [self.importance(supports, seed, name) for name in names] if method == "selective" else None
            return te.combine(
                deltas, base, method=method, weights=weight, density=density, names=names, importance=scores, seed=seed
            )
        both = te.combine(deltas, base, weights=merged_weight, names=names)
        target = self.delta(supports, seed, forgotten)
        # the part to subtract: only its most important entries with 'selective'
        scores = [self.importance(supports, seed, forgotten)] if method == "selective" else None
        part = te.combine([target], base, method=method, density=density, names=[forgotten], importance=scores)
        return te.combine(
            [both], base, subtract=[replace(part, heads={}, full_parameters={})],
            weights=[1.0, factor * merged_weight], names=["merged", "subtracted"],
        )  # fmt: skip

    def importance(self, supports: str, seed: int, name: str) -> dict[str, Tensor]:
        key = (supports, seed, name)
        if key not in self._importance:
            path = self.folder / f"{supports}-{seed}-{name}.importance.pt"
            if path.exists():
                self._importance[key] = torch.load(path, weights_only=True)
            else:
                task = self.tasks[name]
                model = task.evaluated
                self._importance[key] = entry_importance(model, self.delta(supports, seed, name), task.batches(8))
                torch.save(self._importance[key], path)
        return self._importance[key]

    def accuracies(self, delta: te.Delta, part: str) -> dict[str, float]:
        return {name: task.accuracy(delta.with_head(name), part) for name, task in self.tasks.items()}

    def merged(self, supports: str, seed: int, method: str) -> Line:
        """Test accuracies of a merge at the pair that validation rows chose."""
        tried = [
            self.run(
                {"part": "choice", "supports": supports, "method": method, "weight": weight, "density": density},
                lambda w=weight, d=density: {  # type: ignore[misc]
                    "validation": self.accuracies(self.combined(supports, SEEDS[0], method, w, d), "validation")
                },
            )
            for weight, density in GRID[method]
        ]
        best = max(tried, key=lambda line: statistics.mean(line["validation"].values()))
        weight, density = best["weight"], best["density"]
        return self.run(
            {"part": "merged", "supports": supports, "seed": seed, "method": method},
            lambda: {
                "weight": weight, "density": density,
                "test": self.accuracies(self.combined(supports, seed, method, weight, density), "test"),
            },
        )  # fmt: skip

    # --- forgetting ---------------------------------------------------------------------------------------------------

    def forgotten(self, supports: str, seed: int, target: str) -> Line:
        """Test accuracies after a task is subtracted from the merge by arithmetic."""
        before = self.merged(supports, seed, "arithmetic")
        merged_weight = before["weight"]

        def after(method: str, factor: float, density: float, of_seed: int) -> te.Delta:
            return self.combined(supports, of_seed, method, 1.0, density, target, factor, merged_weight)

        reference = next(
            line["validation"]
            for line in self.lines
            if (line["part"], line.get("supports"), line.get("method"), line.get("weight"))
            == ("choice", supports, "arithmetic", merged_weight)
        )
        tried = [
            self.run(
                {
                    "part": "forget choice", "supports": supports, "task": target, "method": method, "factor": factor,
                    "density": density,
                },
                lambda m=method, f=factor, d=density: {  # type: ignore[misc]
                    "validation": self.accuracies(after(m, f, d, SEEDS[0]), "validation")
                },
            )
            for method, factor, density in FORGET_GRID
        ]  # fmt: skip

        def cost(line: Line) -> float:
            return max(reference[name] - line["validation"][name] for name in self.tasks if name != target)

        allowed = [line for line in tried if cost(line) <= ALLOWED_LOSS]
        best = min(allowed, key=lambda line: line["validation"][target]) if allowed else min(tried, key=cost)
        return self.run(
            {"part": "forgotten", "supports": supports, "seed": seed, "task": target},
            lambda: {
                "method": best["method"], "factor": best["factor"], "density": best["density"],
                "chance": self.tasks[target].chance("test"), "before": before["test"],
                "test": self.accuracies(after(best["method"], best["factor"], best["density"], seed), "test"),
            },
        )  # fmt: skip


def summary(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Figures of all lines: normalized mean accuracy by supports and method, and what forgetting leaves."""
    single = {(x["supports"], x["seed"], x["task"]): x for x in lines if x["part"] == "single"}
    figures = []
    for supports in SUPPORTS:
        common = [
            share
            for x in lines
            if (x["part"], x["supports"]) == ("overlap", supports)
            for share in x["shares"].values()
        ]
        if common:
            figures.append(figure(f"{supports}: share of entries that two tasks have in common", common))
        runs = [x for x in lines if (x["part"], x["supports"]) == ("merged", supports)]
        of_head = [
            statistics.mean(
                single[supports, seed, name]["head_alone"] / single[supports, seed, name]["test"] for name in TABLES
            )
            for seed in sorted({x["seed"] for x in runs})
        ]
        shares: dict[str, list[float]] = {"heads on the unchanged base": of_head}
        for x in runs:
            share = statistics.mean(x["test"][name] / single[supports, x["seed"], name]["test"] for name in TABLES)
            shares.setdefault(x["method"], []).append(share)
        figures += [figure(f"{supports}: normalized mean accuracy, {what}", of) for what, of in shares.items() if of]
        gone = [x for x in lines if (x["part"], x["supports"]) == ("forgotten", supports)]
        if gone:
            above = [100 * (x["test"][x["task"]] - x["chance"]) for x in gone]
            lost = [max(100 * (x["before"][n] - x["test"][n]) for n in TABLES if n != x["task"]) for x in gone]
            what = "forgotten task, accuracy above the largest class"
            figures.append(figure(f"{supports}: {what}", above, bar=1.0, unit="points"))
            figures.append(figure(f"{supports}: largest loss of another task", lost, bar=1.0, unit="points"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the first run that ends later")
    parser.add_argument("--deltas", type=Path, default=Path(tempfile.gettempdir(), "taskedge-merged-tasks"))
    arguments = parser.parse_args()
    quiet()
    arguments.deltas.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(arguments.deltas, arguments.minutes)
    try:
        for supports in SUPPORTS:
            for seed in SEEDS:
                for name in TABLES:
                    experiment.single(supports, seed, name)
                experiment.overlap(supports, seed)
                for method in GRID:
                    experiment.merged(supports, seed, method)
        for supports in SUPPORTS:
            for seed in SEEDS:
                for name in FORGOTTEN:
                    experiment.forgotten(supports, seed, name)
    except OutOfTime:
        print("out of time: run it again to go on")
    figures = summary(experiment.lines)
    show(figures)


if __name__ == "__main__":
    main()
