"""Accuracy of three text tasks that are trained at once (``tune-many``), against a delta for each.

    python -m benchmarks.accuracy.many_tasks              # about 15 CPU-minutes; goes on where it stopped
    python -m benchmarks.accuracy.many_tasks --minutes 4  # stop after the first run that ends later than this

all-MiniLM-L6-v2, as many epochs, rates and rows in every run. A delta for each task has 0.1 % of the base's parameters;
``tune-many`` has 0.1 % that all tasks share and 0.05 % for each task, with and without a target for the cost of one
pass for all tasks. Test rows are looked at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.sweep import append, quiet
from benchmarks.record import figure, results, show
from taskedge.demo import assets
from taskedge.training.inference import prepare_inference
from taskedge.training.many.many_config import TuneManyConfig
from taskedge.training.many.tune_many import tune_many
from taskedge.training.tune import tune
from taskedge.training.tune_config import TuneConfig

RESULTS = ("many_tasks.jsonl",)

SEEDS = (0, 1, 2)
SIZES = {"train": 384, "test": 300}
TABLES: dict[str, Callable[[], Path]] = {
    "tweets": lambda: assets.tweets(print),
    "sms-spam": lambda: assets.sms_spam(print),
    "question-types": lambda: assets.question_types(print),
}
TARGETS = (None, "1.5x")
EQUAL: dict[str, Any] = {"epochs": 2, "batch_size": 16, "max_length": 28, "threads": 1}
Line = dict[str, Any]


def tables(folder: Path) -> dict[str, dict[str, Path]]:
    """Training and test rows of each task as CSV files."""
    written: dict[str, dict[str, Path]] = {}
    for name, table in TABLES.items():
        written[name] = {}
        for part, rows in assets.split(assets.read_rows(table()), SIZES, seed=0).items():
            written[name][part] = folder / f"{name}-{part}.csv"
            with written[name][part].open("w", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    return written


def accuracy(delta: Path, test: Path, head: str | None = None) -> float:
    inference = prepare_inference(delta, test, answers=True, head=head, log=lambda _: None)
    return float(inference.evaluate()["accuracy"])


def own_deltas(data: dict[str, dict[str, Path]], seed: int, folder: Path) -> Line:
    """Test accuracies with a delta for each task, bytes of all files and CPU seconds."""
    started, found, size = time.process_time(), {}, 0
    for name, parts in data.items():
        out = folder / f"{name}.safetensors"
        config = TuneConfig(model=str(assets.minilm(print)), train=parts["train"], out=out, seed=seed, **EQUAL)
        tune(config, progress=False, log=lambda _: None)
        size += out.stat().st_size
        found[name] = accuracy(out, parts["test"])
    seconds = time.process_time() - started
    return {"test": found, "bytes": size, "cost": float(len(data)), "cpu_seconds": round(seconds, 1)}


def at_once(data: dict[str, dict[str, Path]], seed: int, folder: Path, target: str | None) -> Line:
    """Test accuracies of tasks trained at once, bytes of the file and CPU seconds."""
    started = time.process_time()
    out = folder / "tasks.safetensors"
    config = TuneManyConfig(model=str(assets.minilm(print)), out=out, seed=seed, flops_target=target, **EQUAL)
    result = tune_many({name: parts["train"] for name, parts in data.items()}, config, log=lambda _: None)
    found = {name: accuracy(out, parts["test"], name) for name, parts in data.items()}
    seconds = time.process_time() - started
    return {
        "test": found, "bytes": result.file_bytes, "cost": result.cost, "cpu_seconds": round(seconds, 1),
        "departures": list(result.departures), "own_rows": [list(each) for each in result.own_rows],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the first run that ends later")
    ends = time.monotonic() + 60 * parser.parse_args().minutes
    quiet()
    path = results("accuracy") / "many_tasks.jsonl"
    path.touch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tables(folder)
        for seed in SEEDS:
            for how in ("own", *TARGETS):
                key = {"how": "a delta for each task" if how == "own" else "at once", "seed": seed}
                key |= {} if how == "own" else {"target": how}
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                if any(all(line.get(k, "") == value for k, value in key.items()) for line in lines):
                    continue
                if time.monotonic() > ends:
                    print("out of time: run it again to go on")
                    break
                runs = folder / f"{seed}-{how}"
                runs.mkdir()
                line = key | (own_deltas(data, seed, runs) if how == "own" else at_once(data, seed, runs, how))
                append(path, line)
                print(line, flush=True)
    show(summary([json.loads(line) for line in path.read_text().splitlines()]))


def summary(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Mean test accuracy over the tasks, one value a seed."""
    found: dict[str, list[float]] = {}
    for line in lines:
        target = f", target {line['target']}" if line.get("target") else ""
        found.setdefault(line["how"] + target, []).append(100 * sum(line["test"].values()) / len(line["test"]))
    return [figure(f"mean test accuracy, {what}", values, unit="%") for what, values in found.items()]


if __name__ == "__main__":
    main()
