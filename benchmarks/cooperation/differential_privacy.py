"""What differential privacy at the devices costs: accuracy at ε = 1, 3 and 8 against none, by what is trained.

    python -m benchmarks.cooperation.differential_privacy          # a sweep that was killed goes on where it stopped
    python -m benchmarks.cooperation.differential_privacy --show   # the table of what is on file

Twenty devices with 300 rows of movie reviews each (feature_task.py), every round a gradient of each on an expected 60
rows (rate 0.2), 40 rounds, δ = 1e-5. Rows are sampled, clipped and noised by the device's own code
(``PrivateTraining``), the noise is the smallest with which all rounds cost at most ε, and the protection is of each row
against everybody but its device. ``none`` trains without clipping and noise. Forms, each with the head's 770 values:

    head            the head alone
    entries 0.1%    the chosen entries of the four linears
    entries 1%      the same, ten times as many
    lora            factors of rank 2 at the four linears, about as many values as entries 1%
    full            all weights and biases of the four linears
    run             entries 1% in a real cooperative run: coordinator, messages, float8

The server steps with AdamW, at a rate that falls to 0. Per form the rate is the one of 0.003 and 0.01 with the better
accuracy on 500 validation rows at ε = 8 and seed 0, test accuracy is on 1,500 other rows.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from transformers import logging

import taskedge as te
from benchmarks.accuracy.sweep import append
from benchmarks.cooperation.cooperation_runs import patient
from benchmarks.cooperation.feature_task import SETTING, FeatureTask, collate, feature_task
from benchmarks.record import machine, results
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.device.privacy_account import PrivacyAccount, PrivacyBudget, noise_for, spent_epsilon
from taskedge.cooperation.device.private_training import PrivateTraining
from taskedge.cooperation.fleet.split_data import split_rows
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

RESULTS = ("differential_privacy.jsonl",)
PATH = results("cooperation") / RESULTS[0]
DEVICES, ROUNDS, EXPECTED, DELTA = 20, 40, 60, 1e-5
BATCH = 60
"""Rows that are computed at once, and in a batch of a real run."""
VALIDATION = 500
SEEDS, RATES = (0, 1, 2), (0.003, 0.01)
EPSILONS = ("8", "none", "3", "1")
FORMS = ("entries 1%", "run", "lora", "full", "head", "entries 0.1%")
CLIP = 0.1
Facts = dict[str, Any]


class LowRank(nn.Module):
    """A linear with a product of two factors added, which starts at 0."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def model_of(given: FeatureTask, form: str, seed: int) -> nn.Module:
    """The base in a form; what trains requires a gradient."""
    model: Any = given.base(seed)
    if form.startswith("entries"):
        support = te.select(model, [collate(given.rows["test"][:64])], budget=form.split()[1], seed=seed)
        te.install(model, support, seed=seed)
        return model
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    for layer in model.layers if form != "head" else ():
        for name in ("value", "output"):
            linear = getattr(layer, name)
            if form == "full":
                linear.requires_grad_(True)
            else:
                setattr(layer, name, LowRank(linear, 2))
    return model


def devices(given: FeatureTask, model: nn.Module, noise: float, seed: int, folder: Path, *, own: bool) -> list[Any]:
    """The devices' trainings; ``own``: each has a model of its own. Without noise they are not private."""
    rows = given.rows["train"]
    parts = split_rows([str(row["labels"]) for row in rows], len(rows), DEVICES, skew=False, seed=seed)
    made: list[Any] = []
    for number, places in enumerate(parts):
        about = (copy.deepcopy(model) if own else model, [rows[place] for place in places], collate)
        if not noise and own:
            made.append(LocalTraining(*about))
            continue
        # accounts are not read here: the noise was chosen for all rounds together
        budget = PrivacyBudget(epsilon=1e9, delta=DELTA, noise=noise or 1e-9, clip=CLIP if noise else 1e9)
        account = PrivacyAccount(budget, folder / f"{number}.json")
        made.append(PrivateTraining(*about, account=account, public=given.rows["test"][:64], seed=1000 * seed + number))
    return made


def simulated(given: FeatureTask, form: str, noise: float, lr: float, seed: int, folder: Path) -> nn.Module:
    """The rounds in a loop, with one model for all devices."""
    model = model_of(given, form, seed)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fleet = devices(given, model, noise, seed, folder, own=False)
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / ROUNDS)
    model.train()
    for _ in range(ROUNDS):
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for device in fleet:
            device._private_gradient(parameters, EXPECTED / len(device.rows), BATCH, lambda: None)
            for name, p in parameters.items():
                assert p.grad is not None
                total[name] += p.grad / DEVICES
        for name, p in parameters.items():
            p.grad = total[name]
        optimizer.step()
        schedule.step()
    return model


def cooperative(given: FeatureTask, noise: float, lr: float, seed: int, folder: Path) -> nn.Module:
    """A real run."""
    settings = patient(
        mode="fedavg", devices=DEVICES, rounds=ROUNDS, batch_size=BATCH, accumulate=EXPECTED // BATCH, budget="1%",
        lr=lr, warmup=0.0, weight_decay=0.0, clip=0.0, calibration=DEVICES, seed=seed,
    )  # fmt: skip
    model = given.base(seed)

    async def whole() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        link, serving = MemoryCoordinatorLink(), []
        for number, training in enumerate(devices(given, given.base(seed), noise, seed, folder, own=True)):
            serving.append(asyncio.create_task(Device(link.device(f"d{number}"), training, memory_bytes=1e12).serve()))
        await Coordinator(link, model, settings, folder / "run", table=given.table(model)).run()
        await asyncio.gather(*serving)

    asyncio.run(whole())
    return model


def accuracy(model: nn.Module, rows: list[Any]) -> float:
    batch = collate(rows)
    with torch.no_grad():
        logits = model.eval()(batch["features"])["logits"]
    return float((logits.argmax(dim=1) == batch["labels"]).float().mean())


def on_file() -> dict[tuple[str, str, float, int], Facts]:
    """The runs on file, by form, ε, learning rate and seed."""
    lines = PATH.read_text().splitlines() if PATH.exists() else []
    return {(line["form"], line["epsilon"], line["lr"], line["seed"]): line for line in map(json.loads, lines)}


def run(given: FeatureTask, form: str, epsilon: str, lr: float, seed: int) -> Facts:
    """One run, from the file if it is there."""
    key = (form, epsilon, lr, seed)
    if key in on_file():
        return on_file()[key]
    started, rate = time.process_time(), EXPECTED * DEVICES / len(given.rows["train"])
    noise = 0.0 if epsilon == "none" else noise_for(float(epsilon), DELTA, rate, ROUNDS)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        if form == "run":
            model = cooperative(given, noise, lr, seed, folder)
        else:
            model = simulated(given, form, noise, lr, seed, folder)
    rows = given.rows["test"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if form != "run" else None
    line = {
        "form": form, "epsilon": epsilon, "lr": lr, "seed": seed, "noise": noise,
        "spent": spent_epsilon(((noise, rate, ROUNDS),), DELTA) if noise else None, "trained_values": trained,
        "validation": accuracy(model, rows[:VALIDATION]), "test": accuracy(model, rows[VALIDATION:]),
        "cpu_seconds": round(time.process_time() - started, 1), "setting": SETTING, "machine": machine(),
    }  # fmt: skip
    append(PATH, line)
    print(f"{form}, ε {epsilon}, lr {lr}, seed {seed}: {line['test']:.3f}, {line['cpu_seconds']} s", flush=True)
    return line


def chosen_rate(form: str) -> float | None:
    """The learning rate of a form, by validation accuracy at ε = 8 and seed 0; None until all rates were run."""
    runs, of_form = on_file(), "entries 1%" if form == "run" else form
    found = {lr: runs[key]["validation"] for lr in RATES if (key := (of_form, "8", lr, 0)) in runs}
    return max(found, key=lambda lr: found[lr]) if set(found) == set(RATES) else None


def show() -> None:
    """The table: mean and deviation of test accuracy over seeds."""
    runs = on_file()
    print(f"{'':14}" + "".join(f"{'ε ' + epsilon:>18}" for epsilon in EPSILONS))
    for form in FORMS:
        words, lr = [], chosen_rate(form)
        for epsilon in EPSILONS:
            tests = [100 * runs[key]["test"] for seed in SEEDS if lr and (key := (form, epsilon, lr, seed)) in runs]
            spread = stdev(tests) if len(tests) > 1 else math.nan
            words.append(f"{mean(tests):.1f} ± {spread:.1f} ({len(tests)})" if tests else "")
        print(f"{form:14}" + "".join(f"{word:>18}" for word in words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    if arguments.show:
        show()
        return
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = feature_task()
    for form in arguments.forms:
        for lr in RATES if form != "run" else ():
            run(given, form, "8", lr, 0)
        lr = chosen_rate(form)
        if lr is None:
            parser.error(f"{form} takes the rate of entries 1%: run these first")
        for seed in arguments.seeds:
            for epsilon in EPSILONS:
                run(given, form, epsilon, lr, seed)


if __name__ == "__main__":
    main()
