"""Attacks by a third of the devices, and what each way of aggregating makes of them.

    python -m benchmarks.cooperation.attacks           # 105 runs; a sweep that was killed goes on where it stopped
    python -m benchmarks.cooperation.attacks --show    # the table of what is on file

Nine devices, every block on every device (``fedavg``), 666 rows of movie reviews each (feature_task.py), over links in
memory. Three devices attack in every round and claim the most tokens that the protocol lets through:

    sign flip    each sends its own gradient with the other sign
    scaled       the same, ten times as large
    label flip   each trains on its rows with the other label
    stale        each sends its gradient of the first round, always
    random       each sends normal noise of the norm of its own gradient
    colluding    all three send one and the same vector: the gradient of one of them with the other sign

``mean, unbounded`` is the mean without scaling to the median (``norm_factor`` infinite); all others are the settings'
``aggregate`` with the default bounds. Test accuracy on 2,000 rows, by seed.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from transformers import logging

from benchmarks.accuracy.sweep import append
from benchmarks.cooperation.cooperation_runs import patient
from benchmarks.cooperation.feature_task import SETTING, FeatureTask, Row, collate, feature_task
from benchmarks.record import machine, results
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalResult, LocalTraining
from taskedge.cooperation.fleet.split_data import split_rows
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

RESULTS = ("attacks.jsonl",)
PATH = results("cooperation") / RESULTS[0]
SEEDS = (0, 1, 2)
DEVICES, LIARS, ROUNDS = 9, 3, 80
SETTINGS = {"mode": "fedavg", "devices": DEVICES, "rounds": ROUNDS, "batch_size": 64, "budget": "1%", "lr": 0.01}
AGGREGATORS: dict[str, dict[str, Any]] = {
    "mean, unbounded": {"aggregate": "mean", "norm_factor": math.inf},
    "mean": {"aggregate": "mean"},
    "median": {"aggregate": "median"},
    "trimmed": {"aggregate": "trimmed"},
    "krum": {"aggregate": "krum"},
}
Tensors = dict[str, Tensor]
Lie = Callable[[Tensors, TrainingRecipe], Tensors]


def scaled(factor: float) -> Callable[[int], Lie]:
    return lambda seed: lambda honest, recipe: {name: factor * tensor for name, tensor in honest.items()}


def same(seed: int) -> Lie:
    return lambda honest, recipe: honest


def stale(seed: int) -> Lie:
    kept: list[Tensors] = []

    def lie(honest: Tensors, recipe: TrainingRecipe) -> Tensors:
        if not kept:
            kept.append(honest)
        return kept[0]

    return lie


def noise(seed: int) -> Lie:
    def lie(honest: Tensors, recipe: TrainingRecipe) -> Tensors:
        draw = torch.Generator().manual_seed(1000 * seed + recipe.round)
        made = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in honest.items()}
        return {name: tensor * honest[name].norm() / tensor.norm() for name, tensor in made.items()}

    return lie


class Colluders:
    """Send the vector of the first of them in each round."""

    def __init__(self) -> None:
        self._of_round: dict[int, Tensors] = {}

    def __call__(self, seed: int) -> Lie:
        def lie(honest: Tensors, recipe: TrainingRecipe) -> Tensors:
            mine = {name: -tensor for name, tensor in honest.items()}
            return self._of_round.setdefault(recipe.round, mine)

        return lie


ATTACKS: dict[str, Callable[[], Callable[[int], Lie]] | None] = {
    "none": None,
    "sign flip": lambda: scaled(-1.0),
    "scaled": lambda: scaled(-10.0),
    "label flip": lambda: same,
    "stale": lambda: stale,
    "random": lambda: noise,
    "colluding": Colluders,
}


class Attacker(LocalTraining):
    """Trains honestly, and sends something else."""

    lie: Lie

    def train(self, task: RoundTask, recipe: TrainingRecipe, check: Callable[[], None] = lambda: None) -> LocalResult:
        honest = super().train(task, recipe, check)
        most = recipe.batch_size * task.accumulate  # this model has one token a row
        return replace(honest, tensors=self.lie(honest.tensors, recipe), tokens=most)


def trainings(given: FeatureTask, attack: str, seed: int) -> list[LocalTraining]:
    """The devices; the last ones attack."""
    rows = given.rows["train"]
    parts = split_rows([str(row["labels"]) for row in rows], len(rows), DEVICES, skew=False, seed=seed)
    base, chosen = given.base(seed), ATTACKS[attack]
    lies = chosen() if chosen else None
    made: list[LocalTraining] = []
    for number, places in enumerate(parts):
        own = [rows[place] for place in places]
        if lies is None or number < DEVICES - LIARS:
            made.append(LocalTraining(copy.deepcopy(base), own, collate))
            continue
        attacker = Attacker(copy.deepcopy(base), _flipped(own) if attack == "label flip" else own, collate)
        attacker.lie = lies(seed + number)
        made.append(attacker)
    return made


def _flipped(rows: list[Row]) -> list[Row]:
    return [{**row, "labels": 1 - row["labels"]} for row in rows]


def run(given: FeatureTask, attack: str, aggregator: str, seed: int) -> dict[str, Any]:
    """One run and its figures."""
    settings = patient(**{**SETTINGS, **AGGREGATORS[aggregator], "seed": seed})
    events: list[dict[str, Any]] = []
    model = given.base(seed)

    async def whole(folder: Path) -> nn.Module:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        link, serving = MemoryCoordinatorLink(), []
        for number, training in enumerate(trainings(given, attack, seed)):
            serving.append(asyncio.create_task(Device(link.device(f"d{number}"), training, memory_bytes=1e12).serve()))
        table = given.table(model)
        await Coordinator(link, model, settings, folder / "run", table=table, on_event=events.append).run()
        await asyncio.gather(*serving)
        return model

    with tempfile.TemporaryDirectory() as folder:
        trained = asyncio.run(whole(Path(folder)))
    rounds = [event for event in events if event["event"] == "round"]
    tasks = [event for event in events if event["event"] == "task"]
    honest = {f"d{number}" for number in range(DEVICES if attack == "none" else DEVICES - LIARS)}
    return {
        "accuracy": given.accuracy(trained),
        "loss": mean(event["loss"] for event in rounds[-10:]),
        "refused": sum(task["result"] != "accepted" for task in tasks),
        "scaled_honest": sum(len(honest & set(event["scaled"])) for event in rounds) / (len(rounds) * len(honest)),
        "scaled_liars": sum(len(set(event["scaled"]) - honest) for event in rounds) / (len(rounds) * LIARS),
    }


def on_file() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The runs on file, by attack, aggregator and seed."""
    lines = PATH.read_text().splitlines() if PATH.exists() else []
    return {(line["attack"], line["aggregator"], line["seed"]): line for line in map(json.loads, lines)}


def show() -> None:
    """The table: mean and deviation of accuracy over seeds."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (attack, aggregator, _), line in on_file().items():
        groups[attack, aggregator].append(100 * line["accuracy"])
    print(f"{'':12}" + "".join(f"{name:>18}" for name in AGGREGATORS))
    for attack in ATTACKS:
        cells = [groups[attack, aggregator] for aggregator in AGGREGATORS]
        words = [f"{mean(c):.1f} ± {stdev(c) if len(c) > 1 else math.nan:.1f} ({len(c)})" if c else "" for c in cells]
        print(f"{attack:12}" + "".join(f"{word:>18}" for word in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--aggregators", nargs="*", choices=AGGREGATORS, default=list(AGGREGATORS))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if arguments.show:
        show()
        return
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = feature_task()
    for seed in arguments.seeds:
        for attack in arguments.attacks:
            for aggregator in arguments.aggregators:
                if (attack, aggregator, seed) in on_file():
                    continue
                started = time.process_time()
                line = {
                    "attack": attack,
                    "aggregator": aggregator,
                    "seed": seed,
                    **run(given, attack, aggregator, seed),
                }
                line["cpu_seconds"] = round(time.process_time() - started, 1)
                append(PATH, {**line, "settings": SETTINGS, "setting": SETTING, "machine": machine()})
                print(
                    f"{attack}, {aggregator}, seed {seed}: {line['accuracy']:.3f}, {line['cpu_seconds']} s", flush=True
                )


if __name__ == "__main__":
    main()
