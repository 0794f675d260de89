"""Accuracy of the selection rules and their rivals at equal budget, each at its own best learning rate.

    python benchmarks/accuracy.py --task movie-reviews      # some 70 CPU-minutes; --task question-types as long
    python benchmarks/report.py                             # tables from the results

Protocol: 1,500 training rows, 500 validation rows, 1,500 test rows, drawn once. The learning rate of a method is found
on seed 0 by validation accuracy on one ladder (…, 1e-3, 3e-3, 1e-2, …), climbed until the best rung has a worse one on
either side; two more seeds are run at that rate (scaled steps of other rules than taskedge have one: they are about
the rate). Test accuracy counts at that rate only. One run appends one line to results/accuracy/TASK.jsonl; a sweep that
was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, set_seed

import taskedge as te
from taskedge import assets
from taskedge.backbone.linears import head_parameters
from taskedge.training.fit import FitSettings, fit
from taskedge.training.text import Row, collator, encode, predict, quality

LADDER = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
SEEDS = (0, 1, 2)
SCALED = ", scaled step"
SIZES = {"train": 1500, "validation": 500, "test": 1500}
TASKS: dict[str, tuple[Callable[[], Path], int, float]] = {  # file, longest text in tokens, epochs
    "movie-reviews": (lambda: assets.movie_reviews(print), 48, 2),
    "question-types": (lambda: assets.question_types(print, fine=True), 24, 4),
}
Facts = dict[str, Any]
Prepare = Callable[[nn.Module, list[Any], int], tuple[nn.Module, Facts]]


def sparse(rule: str, step: str = "plain", **options: Any) -> Prepare:
    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        support = te.select(model, batches, per_neuron=1, rule=rule, seed=seed, **options)
        columns = [len(linear.distinct_columns) for linear in support.linears.values()]
        stored: dict[str, set[int]] = {}
        for linear in support.linears.values():
            stored.setdefault(linear.reads, set()).update(linear.columns.tolist())
        facts = {
            "entries": support.entries,
            "columns_mean": sum(columns) / len(columns),
            "columns_range": [min(columns), max(columns)],
            "stored_columns": sum(map(len, stored.values())),
        }
        return te.install(model, support, step=step), facts

    return prepare


def whole(*kinds: str) -> Prepare:
    """Trains the head and the parameters of these kinds, as they are."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        head = set(head_parameters(model))
        entries = 0
        for name, parameter in model.named_parameters():
            chosen = name not in head and any(name.endswith(kind) for kind in kinds)
            parameter.requires_grad_(chosen or name in head)
            entries += parameter.numel() if chosen else 0
        return model, {"entries": entries}

    return prepare


def lora(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
    from peft import LoraConfig, get_peft_model

    linears = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=linears, task_type="SEQ_CLS"))
    entries = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "lora_" in n)
    return adapted, {"entries": entries}


METHODS: dict[str, tuple[Prepare, tuple[float, float]]] = {  # how, and the two rungs that the climb begins with
    "taskedge": (sparse("taskedge"), (3e-3, 1e-2)),
    "random": (sparse("random"), (3e-3, 1e-2)),
    "magnitude": (sparse("magnitude"), (3e-3, 1e-2)),
    "gradient": (sparse("gradient"), (3e-3, 1e-2)),
    "head only": (whole(), (1e-2, 3e-2)),
    "BitFit": (whole(".bias"), (3e-3, 1e-2)),
    "LoRA r=8": (lora, (1e-3, 3e-3)),
    "full": (whole(""), (1e-4, 3e-4)),
    "taskedge" + SCALED: (sparse("taskedge", "activation"), (3e-3, 1e-2)),
    "random" + SCALED: (sparse("random", "activation"), (3e-3, 1e-2)),
    "magnitude" + SCALED: (sparse("magnitude", "activation"), (3e-3, 1e-2)),
    "gradient" + SCALED: (sparse("gradient", "activation"), (3e-3, 1e-2)),
}


RATE_ALONE = {rule + SCALED for rule in ("random", "magnitude", "gradient")}  # these show the rate only: one seed


class Sweep:
    """All runs of one task, and the file they are kept in."""

    def __init__(self, task: str) -> None:
        table, longest, self.epochs = TASKS[task]
        folder = assets.minilm(print)
        parts = assets.split(assets.read_rows(table()), SIZES, seed=0)
        labels = sorted({label for rows in parts.values() for _, label in rows})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.rows: dict[str, list[Row]] = {
            part: encode(tokenizer, [text for text, _ in rows], [labels.index(label) for _, label in rows], longest)
            for part, rows in parts.items()
        }
        self.collate = collator(tokenizer)
        self.base = lambda: AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
        self.task = task
        self.path = RESULTS / "accuracy" / f"{task}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {(run["method"], run["lr"], run["seed"]): run for run in map(json.loads, lines)}

    def run(self, method: str, lr: float, seed: int) -> Facts:
        """One training run, or what is on file of it."""
        if (method, lr, seed) in self.done:
            return self.done[method, lr, seed]
        set_seed(seed)
        model = self.base()
        batches = [self.collate(self.rows["train"][start : start + 32]) for start in range(0, 256, 32)]
        model, facts = METHODS[method][0](model, batches, seed)
        started = time.process_time()
        settings = FitSettings(epochs=self.epochs, lr=lr, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = fit(model, self.rows["train"], self.collate, settings, Path(folder), progress=False)
                loss, steps = done.loss, done.steps
            except te.TaskEdgeError as error:
                print(error)
                loss, steps = None, 0
        seconds = time.process_time() - started
        run: Facts = {"task": self.task, "method": method, "lr": lr, "seed": seed, "loss": loss, "steps": steps}
        for part in ("validation", "test"):
            truth = [row["labels"] for row in self.rows[part]]
            run[part] = 0.0 if loss is None else quality(predict(model, self.rows[part], self.collate), truth).accuracy
        run |= facts | {"cpu_seconds": round(seconds, 1), "machine": machine()}
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        self.done[method, lr, seed] = run
        print(f"{method:24} lr {lr:g} seed {seed}: validation {run['validation']:.3f}, {seconds:.0f} s", flush=True)
        return run

    def best_rate(self, method: str) -> float:
        """Climbs the ladder on seed 0 until the best rung has a tried one on either side (or is the ladder's end)."""
        tried = {lr: self.run(method, lr, 0)["validation"] for lr in METHODS[method][1]}
        while True:
            best = max(tried, key=lambda lr: (tried[lr], -lr))
            place = LADDER.index(best)
            missing = [lr for lr in LADDER[max(place - 1, 0) : place + 2] if lr not in tried]
            if not missing:
                return best
            tried[missing[0]] = self.run(method, missing[0], 0)["validation"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sweep = Sweep(arguments.task)
    for method in arguments.methods:
        rate = sweep.best_rate(method)
        for seed in SEEDS[:1] if method in RATE_ALONE else SEEDS:
            sweep.run(method, rate, seed)


if __name__ == "__main__":
    main()
