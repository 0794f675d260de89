"""Accuracy of TaskEdge and its rivals, each at its own best learning rates for the body and for the head.

    python -m benchmarks.accuracy.compare --task question-types                       # all methods; resumable
    python -m benchmarks.accuracy.compare --task movie-reviews --methods 'LoRA r=8'
    python -m benchmarks.accuracy.compare --task movie-reviews --device cuda
    python -m benchmarks.report.tables                                                # tables from the results

Protocol. Training, validation and test rows are drawn once. Every method has the same number of trials on the same two
ladders, one for the body and one for the head. A search begins at the method's own body rate and walks to better
neighbors; a trial is judged by validation loss and accuracy on seed 0. The best trials run on a second seed, and the
best mean wins. Variants that the authors of a method advise are tried at the winning rates. The winner runs on five
seeds, and only these runs see the test rows. Each method then trains to convergence: at the winning rates and at a
third of them, until the validation loss has not improved for three evaluations, up to a cap on the epochs. Runs that
see the test rows also measure what they forget: the rank correlation of sentence similarities on texts of another task.
Tasks whose names end in "-mpnet" train MPNet-base, and the others MiniLM-L6.

A winner that ran as a trial is not trained again: its values were kept, and see the test rows.

A run appends one line to results/compare/TASK.jsonl. A sweep that was killed continues where it stopped, and several
may run beside each other on different methods.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import taskedge as te
from benchmarks.accuracy.finding import LearnedSupport, TrainingRows
from benchmarks.accuracy.forgetting import TEXTS, cosines, kept_ranks
from benchmarks.accuracy.kept_runs import KeptRuns
from benchmarks.accuracy.methods import CALLBACKS, MEASURED, Facts
from benchmarks.accuracy.protocol import (
    BATCH,
    FINALISTS,
    LONG,
    PATIENCE,
    SEEDS,
    SELECTION_ROWS,
    TRIALS,
    Pair,
    lower,
    next_pair,
    score,
    still_falls,
)
from benchmarks.accuracy.rivals import COMPARED, Rival
from benchmarks.accuracy.sweep import Task, append, quiet
from benchmarks.record import machine, results
from taskedge.backbone.candidates import head_parameters
from taskedge.demo import assets
from taskedge.training.callbacks import Callback, TrainState
from taskedge.training.data.text_data import Row, collator, encode, predict, quality
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("compare/",)

_ON_MINILM = {
    "question-types": Task(lambda: assets.question_types(print, fine=True), longest=24, epochs=4, validation=1000),
    "movie-reviews": Task(lambda: assets.movie_reviews(print), longest=48, epochs=2, validation=1000),
    "tweets": Task(lambda: assets.tweets(print), longest=40, epochs=2, train=1000, validation=1000),
    "sms-spam": Task(lambda: assets.sms_spam(print), longest=40, epochs=2, train=800, validation=1000),
    "bbc-news": Task(lambda: assets.bbc_news(print), longest=64, epochs=3, train=500, validation=500, test=1000),
    "sarcasm": Task(lambda: assets.sarcasm_headlines(print), longest=32, epochs=2, validation=1000),
    "r52": Task(lambda: assets.reuters(print), longest=64, epochs=4, validation=1000),
}
TASKS = _ON_MINILM | {
    f"{task}-mpnet": replace(_ON_MINILM[task], base=lambda: assets.mpnet_base(print))
    for task in ("question-types", "tweets")
}
OTHER_TEXTS = ("question-types", "tweets")
"""The task whose texts show what is forgotten, and the one that takes its place where these are the task's own."""


@dataclass(frozen=True)
class Budget:
    """How long a run trains.

    Attributes:
        name: key in the results.
        factor: epochs, in those of the task.
        stops: whether a run ends when the validation loss no longer improves, with its best values.
    """

    name: str
    factor: float
    stops: bool


SHORT, CONVERGED = Budget("short", 1, stops=False), Budget("converged", LONG, stops=True)


class StopWhenConverged(Callback):
    """Evaluates once every short epoch, ends a run that no longer improves, and restores its best values."""

    def __init__(self, sweep: Sweep, every: int) -> None:
        self.sweep, self.every = sweep, every
        self.losses: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    def on_step_end(self, state: TrainState) -> None:
        if state.step % self.every and state.step != state.max_steps:
            return
        loss = self.sweep.evaluate(state.model, "validation")["validation_loss"]
        if not self.losses or loss < min(self.losses):
            self.best = {n: p.detach().clone() for n, p in state.model.named_parameters() if p.requires_grad}
        self.losses.append(loss)
        if len(self.losses) - 1 - self.losses.index(min(self.losses)) >= PATIENCE:
            state.max_steps = state.step

    def on_train_end(self) -> None:
        pass

    def restore(self, model: torch.nn.Module) -> None:
        """Set the trained parameters to those of the best evaluation."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.best.items():
                parameters[name].copy_(value)


class Sweep:
    """All runs of some methods on one task, and the file that keeps them."""

    def __init__(self, task: str, device: str = "cpu", folder: str = "compare", batch_size: int = BATCH) -> None:
        self.task, self.device, self.batch_size, settings = task, device, batch_size, TASKS[task]
        base, self.epochs = settings.base(), settings.epochs
        parts = settings.parts()
        labels = sorted({label for rows in parts.values() for _, label in rows})
        tokenizer = AutoTokenizer.from_pretrained(base)
        self.labels = {part: [labels.index(label) for _, label in rows] for part, rows in parts.items()}
        self.rows: dict[str, list[Row]] = {
            part: encode(tokenizer, [text for text, _ in rows], self.labels[part], settings.longest)
            for part, rows in parts.items()
        }
        self.collate = collator(tokenizer)
        self.base = lambda: AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
        are_own = settings.table is TASKS[OTHER_TEXTS[0]].table
        others = TASKS[OTHER_TEXTS[are_own]].parts()["validation"][:TEXTS]
        self.other_rows = encode(tokenizer, [text for text, _ in others], [0] * len(others), settings.longest)
        self.other_cosines = cosines(self.base(), self.other_rows, self.collate)
        self.path = results("accuracy") / folder / f"{task}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.kept = KeptRuns(f"{self.path.resolve()} {batch_size} {machine(device)}")

    def evaluate(self, model: torch.nn.Module, part: str) -> Facts:
        """Return the loss and the accuracy on validation or test rows; of test rows also which were right."""
        prediction = predict(model, self.rows[part], self.collate, 64)
        found = quality(prediction, self.labels[part])
        facts: Facts = {part: found.accuracy, f"{part}_loss": round(found.loss, 5)}
        if part == "test":  # for paired tests
            hits = prediction.classes == np.asarray(self.labels[part])
            facts |= {"test_rows": len(hits), "test_hits": np.packbits(hits).tobytes().hex()}
        return facts

    def run(self, method: str, rival: Rival, pair: Pair, seed: int, budget: Budget, variant: str, test: bool) -> Facts:
        """Return one training run, from the file if it is there."""
        key = {
            "method": method, "variant": variant, "budget": budget.name, "body_lr": pair[0], "head_lr": pair[1],
            "seed": seed, "with_test": test,
        }  # fmt: skip
        on_file = self._on_file(key)
        if on_file is not None:
            return on_file
        trial_key = key | {"with_test": False}
        trial = self._on_file(trial_key) if test and self.kept.has(trial_key) else None
        started = time.process_time()
        set_seed(seed)
        model = self.base().to(self.device)
        starts = range(0, SELECTION_ROWS, self.batch_size)
        first = [self.collate(self.rows["train"][start : start + self.batch_size]) for start in starts]
        prepare = rival.variants[variant] if variant else rival.prepare
        if isinstance(prepare, LearnedSupport):
            rows = self.rows["train"]
            prepare = prepare.on(TrainingRows(self.task, rows, self.collate, self.epochs, self.batch_size))
        model, facts = prepare(model, first, seed)
        callbacks, measured = facts.pop(CALLBACKS, []), facts.pop(MEASURED, None)
        run: Facts = {"task": self.task, **key}
        if trial is not None:
            self.kept.restore(trial_key, model)
            run |= {name: value for name, value in trial.items() if name not in key}
        else:
            run |= self._trained(model, pair, seed, budget, callbacks) | facts
            if run["loss"] is not None and measured is not None:
                run |= measured(model)
            if not test and not callbacks:  # a callback may move entries, which parameters do not tell
                self.kept.keep(key, model)
        if test and run["loss"] is not None:
            run |= self.evaluate(model, "test")
            after = cosines(model, self.other_rows, self.collate)
            run["kept_ranks"] = round(kept_ranks(self.other_cosines, after), 5)
        seconds = time.process_time() - started + (trial["cpu_seconds"] if trial else 0)
        run |= {"cpu_seconds": round(seconds, 1), "machine": machine(self.device)}
        append(self.path, run)
        rates = f"body {pair[0] or 0:g} head {pair[1]:g}"
        print(
            f"{self.task} {method:26} {variant:12} {budget.name:9} {rates:22} seed {seed}: "
            f"validation {run['validation']:.3f}, {run['cpu_seconds']:.0f} s",
            flush=True,
        )
        return run

    def _trained(
        self, model: torch.nn.Module, pair: Pair, seed: int, budget: Budget, callbacks: Sequence[Callback]
    ) -> Facts:
        """Train a model that is ready, and return its losses; those of a run that diverged are None."""
        body_lr, head_lr = pair
        config = TrainerConfig(
            epochs=self.epochs * budget.factor, lr=0.0 if body_lr is None else body_lr, head_lr=head_lr,
            batch_size=self.batch_size, seed=seed,
        )  # fmt: skip
        stop = StopWhenConverged(self, math.ceil(len(self.rows["train"]) / self.batch_size))
        with tempfile.TemporaryDirectory() as folder:
            try:
                done = train(
                    model, self.rows["train"], self.collate, config, Path(folder), progress=False,
                    callbacks=[*callbacks, *([stop] if budget.stops else [])], head=head_names(model),
                )  # fmt: skip
            except te.TaskEdgeError as error:
                print(error)
                return {"loss": None, "steps": 0, "validation": 0.0, "validation_loss": None}
        found: Facts = {"loss": done.loss, "steps": done.steps, "last_loss": done.log[-1]["loss"]}
        found["still_falls"] = still_falls(done.log)
        if budget.stops:
            stop.restore(model)
            at_cap = len(stop.losses) - 1 - stop.losses.index(min(stop.losses)) < PATIENCE
            found |= {"validation_losses": [round(loss, 5) for loss in stop.losses], "at_cap": at_cap}
        return found | self.evaluate(model, "validation")

    def _on_file(self, key: Facts) -> Facts | None:
        for line in self.path.read_text().splitlines():
            run: Facts = json.loads(line)
            if all(run[name] == value for name, value in key.items()):
                return run
        return None

    def search(self, method: str, rival: Rival) -> tuple[Pair, str]:
        """Return the learning rates and the variant that win on validation rows."""
        tried: dict[Pair, float] = {}
        for _ in range(TRIALS):
            pair = next_pair(tried, rival.body_lr)
            tried[pair] = score(self.run(method, rival, pair, 0, SHORT, "", test=False))
        finalists = sorted(tried, key=lambda pair: tried[pair])[-FINALISTS:]
        means = {
            pair: (tried[pair] + score(self.run(method, rival, pair, 1, SHORT, "", test=False))) / 2
            for pair in finalists
        }
        pair = max(means, key=lambda pair: means[pair])
        by_variant = {"": means[pair]}
        for variant in rival.variants:
            runs = [self.run(method, rival, pair, seed, SHORT, variant, test=False) for seed in (0, 1)]
            by_variant[variant] = mean(map(score, runs))
        return pair, max(by_variant, key=lambda variant: by_variant[variant])

    def compare(self, method: str, budgets: Sequence[str], seeds: Sequence[int] = SEEDS) -> None:
        """Search the rates of a method and run its final seeds."""
        rival = COMPARED[method]
        pair, variant = self.search(method, rival)
        if SHORT.name in budgets:
            for seed in seeds:
                self.run(method, rival, pair, seed, SHORT, variant, test=True)
        if CONVERGED.name in budgets:
            third = (lower(pair[0]), lower(pair[1]) or pair[1])
            scores = {
                rates: score(self.run(method, rival, rates, 0, CONVERGED, variant, test=False))
                for rates in (pair, third)
            }
            best = max(scores, key=lambda rates: scores[rates])
            for seed in seeds:
                self.run(method, rival, best, seed, CONVERGED, variant, test=True)
        self.kept.forget(method)


def head_names(model: torch.nn.Module) -> set[str]:
    """Return the names of the trained parameters of the head, within an adapter of PEFT's as well."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_peft = {name for name in trained if "modules_to_save" in name}
    return in_peft or trained & set(head_parameters(model))


def main() -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--budgets", nargs="*", choices=["short", "converged"], default=["short", "converged"])
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    arguments = parser.parse_args()
    quiet()
    sweeps = [Sweep(task, arguments.device) for task in arguments.task]
    for method in arguments.methods:
        for sweep in sweeps:
            sweep.compare(method, arguments.budgets)


if __name__ == "__main__":
    main()
