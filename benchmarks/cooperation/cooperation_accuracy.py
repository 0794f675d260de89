"""Accuracy of cooperative runs beside ``tune`` at the same number of trained tokens: MiniLM-L6, movie reviews.

    # all variants, 3 seeds each
    python -m benchmarks.cooperation.cooperation_accuracy
    # another setting
    python -m benchmarks.cooperation.cooperation_accuracy --variants "deft, iid" --seeds 0 --change lr=0.01
    # the table of what is on file
    python -m benchmarks.cooperation.cooperation_accuracy --show

Rows are those of accuracy.py: 1,500 to train on, parted among four devices. ``tune`` takes 94 steps of 32 rows (two
passes); a cooperative run takes 94 rounds, of 8 rows on each of the four devices: as many rows, tokens and steps. All
else is the defaults of either. Settings are chosen by validation rows only; test rows count in the table alone. One run
appends one line to results/cooperation_accuracy.jsonl; a sweep that was killed goes on where it stopped. One process,
one thread, some 1.5 CPU-minutes a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import logging

import taskedge as te
from benchmarks.accuracy.sweep import append
from benchmarks.cooperation.cooperation_runs import Ran, Setting, cooperate, patient, setting
from benchmarks.record import machine, results
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.device.local_training import tokens_in
from taskedge.cooperation.scheduling.estimates import text_block_table
from taskedge.training.data.text_data import predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("cooperation_accuracy.jsonl",)

PATH = results("cooperation") / "cooperation_accuracy.jsonl"
SEEDS = (0, 1, 2)
DEVICES, STEPS, ROWS = 4, 94, 32
SETTINGS = {"devices": DEVICES, "rounds": STEPS, "batch_size": ROWS // DEVICES}
LENGTH = 128
"""Tokens of a row that the log's FLOPs are counted for."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Who trains what, on which data."""

    settings: dict[str, Any] = field(default_factory=dict)
    skew: bool = False


VARIANTS: dict[str, Variant | None] = {
    "tune": None,
    "deft, iid": Variant(),
    "fedavg, iid": Variant({"mode": "fedavg"}),
    "fedavg, iid, 1/8 active": Variant({"mode": "fedavg", "active_share": 1 / 8}),
    "deft, skewed": Variant(skew=True),
    "replicate, skewed": Variant({"mode": "replicate"}, skew=True),
    "fedavg, skewed": Variant({"mode": "fedavg"}, skew=True),
    "deft, iid, 1/8 active": Variant({"active_share": 1 / 8}),
}


def tuned(given: Setting, seed: int, changes: Facts) -> tuple[nn.Module, Facts]:
    """A run on all rows in one place, as ``taskedge tune`` does it."""
    model, rows = given.base(seed), given.rows["train"]
    settings = TrainerConfig(**{"epochs": 2, "batch_size": ROWS, "seed": seed} | changes)
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = [given.collate([rows[place] for place in order[n * ROWS : (n + 1) * ROWS]]) for n in range(8)]
    support = te.select(model, batches, budget=CooperationConfig().budget, seed=seed)
    te.install(model, support, step=CooperationConfig().step, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        done = train(model, rows, given.collate, settings, Path(folder), progress=False)
    tokens = round(settings.epochs * sum(tokens_in(given.collate([row])) for row in rows))
    return model, {"loss": done.loss, "steps": done.steps, "tokens": tokens, "entries": support.num_entries}


def cooperative(given: Setting, variant: Variant, seed: int, changes: Facts) -> tuple[nn.Module, Facts]:
    """A run on devices."""
    settings = patient(**SETTINGS | variant.settings | {"seed": seed} | changes)
    ran = cooperate(given, settings, skew=variant.skew)
    rounds, tasks = ran.of("round"), ran.of("task")
    unused = [task for task in tasks if task["result"] != "accepted"]
    return ran.model, {
        "loss": mean(line["loss"] for line in rounds[-10:]),
        "steps": len(rounds),
        "tokens": sum(line["tokens"] for line in rounds),
        "entries": ran.of("support")[0]["entries"],
        "unused_answers": len(unused),
        "bytes_up": [mean(task["bytes_up"] for task in tasks), max(task["bytes_up"] for task in tasks)],
        "bytes_down": [mean(task["bytes_down"] for task in tasks), max(task["bytes_down"] for task in tasks)],
        "settings": settings.model_dump(exclude={"seed"}),
        **(saved(ran, settings) if settings.active_share < 1 else {}),
    }


def saved(ran: Ran, settings: CooperationConfig) -> Facts:
    """Shares of FLOPs and bytes that idle modules save over the whole run, halving and trials included.

    ``backward_saved`` leaves the forward pass out, which every method has. ``entries_saved`` is of the gradients of
    entries alone, 2 FLOPs an entry and token: the work that is the method's own, beside that of the frozen model.
    """
    rounds = ran.of("round")
    table = text_block_table(te.fuse(ran.model), LENGTH, settings)
    forward = float(table.forward_flops.sum()) + table.other_forward_flops
    per_device = settings.rows_per_round * table.sequence_tokens * forward
    total, every = (sum(line[key] for line in rounds) for key in ("device_flops", "device_flops_all_active"))
    working = sum(line["devices"] for line in rounds)
    entries, tokens = ran.of("support")[0]["entries"], sum(line["tokens"] for line in rounds)
    trained = sum(line["active_values"] * line["tokens"] for line in rounds)
    return {
        "entries_saved": 1 - trained / (entries * tokens),
        "flops_saved": 1 - total / every,
        "backward_saved": 1 - (total - working * per_device) / (every - DEVICES * len(rounds) * per_device),
        "upload_saved": 1 - sum(r["upload_bytes"] for r in rounds) / sum(r["upload_bytes_all_active"] for r in rounds),
        "active": [line["active"] for line in rounds],
    }


def done() -> dict[tuple[str, str, int], Facts]:
    """What is on file, by variant, changes and seed."""
    lines = PATH.read_text().splitlines() if PATH.exists() else []
    return {(run["variant"], run["change"], run["seed"]): run for run in map(json.loads, lines)}


def changed(words: list[str]) -> Facts:
    """``["lr=0.01"]`` as settings."""
    return {name: json.loads(value) for name, value in (word.split("=", 1) for word in words)}


def run(given: Setting, name: str, words: list[str], seed: int) -> None:
    """One run, unless it is on file."""
    change = " ".join(sorted(words))
    if (name, change, seed) in done():
        return
    started, variant = time.process_time(), VARIANTS[name]
    model, facts = (
        tuned(given, seed, changed(words)) if variant is None else cooperative(given, variant, seed, changed(words))
    )
    seconds = time.process_time() - started
    line: Facts = {"variant": name, "change": change, "seed": seed}
    for part in ("validation", "test"):
        truth = np.array([row["labels"] for row in given.rows[part]])
        hits = predict(model, given.rows[part], given.collate).classes == truth
        line |= {part: float(hits.mean()), f"{part}_hits": np.packbits(hits).tobytes().hex()}
    append(PATH, line | facts | {"cpu_seconds": round(seconds, 1), "machine": machine()})
    print(f"{name} {change} seed {seed}: validation {line['validation']:.3f}, {seconds:.0f} s", flush=True)


def show() -> None:
    """The table: test accuracy of the defaults, validation accuracy of every change."""
    groups: dict[tuple[str, str], list[Facts]] = defaultdict(list)
    for (name, change, _), line in done().items():
        groups[name, change].append(line)
    for (name, change), lines in groups.items():
        part = "validation" if change else "test"
        spread = stdev(line[part] for line in lines) if len(lines) > 1 else float("nan")
        saving = "".join(
            f", {key.replace('_', ' ')} {mean(line[key] for line in lines):.1%}"
            for key in ("entries_saved", "flops_saved", "backward_saved", "upload_saved")
            if key in lines[0]
        )
        print(
            f"{name:24} {change:24} {part:10} {mean(line[part] for line in lines):.4f} ± {spread:.4f} "
            f"({len(lines)} seeds, {mean(line['tokens'] for line in lines):,.0f} tokens{saving})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--change", nargs="*", default=[], help="settings, as name=JSON")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if arguments.show:
        show()
        return
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = setting()
    for name in arguments.variants:
        for seed in arguments.seeds:
            run(given, name, arguments.change, seed)


if __name__ == "__main__":
    main()
