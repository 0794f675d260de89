"""That zeroth order learns: MeZO on entries of the last block against the head alone, movie reviews.

    python -m benchmarks.accuracy.mezo_learning                     # some ten minutes a run on one idle core; goes on
    python -m benchmarks.accuracy.mezo_learning --lr 0.3 --seeds 0  # another rate, judged on validation rows

Rows are those of accuracy.py. 1,000 steps of 32 rows, two forward passes each: one entry per neuron of the block
nearest the output along seeded directions, the head by its exact gradient. Noise grows with the number of entries, so
that all six blocks would take far more steps. The same run with the entries at rest (a rate of 0) is the head alone,
which is reported beside the best that accuracy.py found for it. One run appends one line to
results/mezo_learning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from transformers import set_seed

import taskedge as te
from benchmarks.accuracy.sweep import Sweep, append, quiet
from benchmarks.record import machine, results
from taskedge.backbone.candidates import head_parameters
from taskedge.training.data.text_data import predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("mezo_learning.jsonl",)

PATH = results("accuracy") / "mezo_learning.jsonl"
STEPS, ROWS, DEPTH, LR, PERTURBATION = 1000, 32, 1, 0.15, 1e-2
SEEDS = (0, 1, 2)


def run(sweep: Sweep, lr: float, seed: int) -> None:
    """One run, unless it is on file; a rate of 0 leaves the entries where they are."""
    lines = map(json.loads, PATH.read_text().splitlines()) if PATH.exists() else ()
    if any((line["lr"], line["seed"]) == (lr, seed) for line in lines):
        return
    set_seed(seed)
    model, rows = sweep.base(), sweep.rows["train"]
    batches = [sweep.collate(rows[start : start + ROWS]) for start in range(0, 8 * ROWS, ROWS)]
    te.install(model, te.select(model, batches, per_neuron=1, depth=DEPTH, seed=seed), step="activation")
    settings = TrainerConfig(
        epochs=STEPS * ROWS / len(rows), lr=lr, batch_size=ROWS, optimizer="mezo", perturbation=PERTURBATION, seed=seed
    )
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = train(model, rows, sweep.collate, settings, Path(folder), progress=False, head=head_parameters(model))
    seconds = time.process_time() - started
    found = {}
    for part in ("validation", "test"):
        truth = np.array([row["labels"] for row in sweep.rows[part]])
        found[part] = float((predict(model, sweep.rows[part], sweep.collate).classes == truth).mean())
    facts = {"lr": lr, "seed": seed, "steps": done.steps, "loss": done.loss, **found}
    append(PATH, facts | {"cpu_seconds": round(seconds, 1), "machine": machine()})
    print(f"lr {lr:g} seed {seed}: validation {found['validation']:.3f}, {seconds:.0f} s", flush=True)


def show() -> None:
    """Test accuracy of MeZO and of the head alone."""
    lines = [json.loads(line) for line in PATH.read_text().splitlines()]
    for lr in sorted({line["lr"] for line in lines}):
        tests = [line["test"] for line in lines if line["lr"] == lr]
        spread = f" ± {stdev(tests):.4f}" if len(tests) > 1 else ""
        print(f"{'head alone' if lr == 0 else f'MeZO, {lr:g}'}: test {mean(tests):.4f}{spread} ({len(tests)} seeds)")
    best = [
        json.loads(line) for line in (results("accuracy") / "sweep" / "movie-reviews.jsonl").read_text().splitlines()
    ]
    alone = [line for line in best if line["method"] == "head only" and line["seed"] in SEEDS]
    rate = max({line["lr"] for line in alone}, key=lambda lr: sum(line["lr"] == lr for line in alone))
    tests = [line["test"] for line in alone if line["lr"] == rate]
    print(f"head only in accuracy.py: test {mean(tests):.4f} ({len(tests)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lr", nargs="*", type=float, default=[LR, 0.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if not arguments.show:
        quiet()
        sweep = Sweep("movie-reviews")
        for seed in arguments.seeds:
            for lr in arguments.lr:
                run(sweep, lr, seed)
    show()


if __name__ == "__main__":
    main()
