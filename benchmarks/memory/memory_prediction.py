"""Memory and time of a run as predicted from small steps, against those of the run itself.

    # all configurations that are not in the results yet
    python -m benchmarks.memory.memory_prediction
    python -m benchmarks.memory.memory_prediction --only minilm-32x128-blocks --again

Each configuration has a process of its own, on one thread, in which the prediction is made and then the run, as
`taskedge tune --memory` does it. Measured memory is the peak of the resident set over the whole run after the
prediction (selection, training, checkpoint, writing the file), less that of the process when it had loaded the base and
done nothing. Seconds are of the processor, a mean over the steps of one epoch in batches of real text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.record import rerun, results, write
from taskedge.demo import assets

RESULTS = ("memory_prediction.json",)

STEPS = 4
MEMORY_BAR, SECONDS_BAR = 0.10, 0.15


@dataclass(frozen=True)
class Configuration:
    """A run: a model, a batch, a length of texts, and the rung."""

    model: str
    batch: int
    length: int
    rung: str
    changes: dict[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.batch}x{self.length}-{self.rung}"


def configurations() -> list[Configuration]:
    found = []
    for model, batch, length, depth in (
        ("minilm", 16, 64, 2), ("minilm", 32, 128, 2), ("smollm2", 4, 64, 8), ("smollm2", 4, 128, 8),
    ):  # fmt: skip
        part = {"micro_batch": batch // 4}
        rungs: dict[str, dict[str, Any]] = {
            "as it is": {},
            "micro-batch": part,
            "inputs": {"recompute": "inputs"},
            "blocks": {"recompute": "blocks"},
            "blocks, micro-batch": {"recompute": "blocks"} | part,
            "depth": {"depth": depth},
        }
        found += [Configuration(model, batch, length, rung, changes) for rung, changes in rungs.items()]
    return found


def data(configuration: Configuration, folder: Path) -> Path:
    """Reviews joined and cut into texts of some tokens fewer to some more than the length: a table of STEPS batches."""
    words = " ".join(text for text, _ in assets.read_rows(assets.movie_reviews(print))[:3000]).replace('"', "").split()
    rows, start = [], 0
    for number in range(STEPS * configuration.batch):
        count = configuration.length // 2 + number * 37 % configuration.length
        rows.append((" ".join(words[start : start + count]), str(number % 2)))
        start += count
    path = folder / ("rows.csv" if configuration.model == "minilm" else "rows.txt")
    if path.suffix == ".csv":
        assets.write_rows(path, rows)
    else:
        path.write_text("\n".join(text for text, _ in rows) + "\n")
    return path


def settings(configuration: Configuration, folder: Path) -> Any:
    from taskedge.training.tune_config import TuneConfig

    base = assets.minilm(print) if configuration.model == "minilm" else assets.smollm2(print)
    return TuneConfig(
        model=str(base), train=data(configuration, folder), out=folder / "out.safetensors", threads=1, epochs=1.0,
        max_length=configuration.length, batch_size=configuration.batch, dtype="fp32", calibration=2,
        **configuration.changes,
    )  # fmt: skip


def one(configuration: Configuration) -> dict[str, Any]:
    """In this process: what is predicted, and what it is."""
    from contextlib import closing

    from taskedge.profiling.process_memory import peak_bytes, reset_peak
    from taskedge.training import tune
    from taskedge.training.memory.profiler import MemoryProfiler
    from taskedge.training.run import prepare_run

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = settings(configuration, Path(folder))
        run = prepare_run(made, print)
        started = time.process_time()
        with closing(MemoryProfiler(run).iter_groups()) as groups:
            cost = next(iter(groups)).costs[0]
        took = time.process_time() - started
        reset_peak(torch.device("cpu"))
        with mock.patch.object(
            tune, "_fit_memory_budget", return_value=(run, cost.as_json())
        ):  # this way, not the fastest
            done = tune.tune(made, progress=False)
        measured = {
            "above_idle": peak_bytes(torch.device("cpu")) - cost.memory.process - cost.memory.base,
            "cpu_seconds": done.cpu_seconds_per_step,
            "seconds": done.seconds_per_step,
            "steps": done.steps,
        }
    predicted = cost.as_json()
    return {
        "memory_error": cost.memory.above_idle / measured["above_idle"] - 1,
        "seconds_error": cost.cpu_seconds / measured["cpu_seconds"] - 1,
        "prediction_took_cpu_seconds": took,
        "predicted": predicted,
        "measured": measured,
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    worst = {key: max(found, key=lambda row, key=key: abs(row[key])) for key in ("memory_error", "seconds_error")}
    bars = {"memory_error": MEMORY_BAR, "seconds_error": SECONDS_BAR}
    return {
        key: {
            "worst": row[key],
            "of": row["name"],
            "bar": bars[key],
            "met": abs(row[key]) <= bars[key],
            "within": sum(abs(other[key]) <= bars[key] for other in found),
            "configurations": len(found),
        }
        for key, row in worst.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="configurations whose name contains this")
    parser.add_argument("--again", action="store_true", help="also those in the results already")
    parser.add_argument("--one", help="print that of one configuration as JSON")
    arguments = parser.parse_args()
    every = {one.name: one for one in configurations()}
    if arguments.one:
        print(json.dumps(one(every[arguments.one])))
        return
    stored = results("memory") / "memory_prediction.json"
    rows = (
        {row["name"]: row for row in json.loads(stored.read_text())["details"]["configurations"]}
        if stored.exists()
        else {}
    )
    for name in every:
        if (name in rows and not arguments.again) or (arguments.only or "") not in name:
            continue
        command = rerun("--one", name)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows[name] = {"name": name} | json.loads(done.stdout.splitlines()[-1])
        errors = {key: rows[name][f"{key}_error"] for key in ("memory", "seconds")}
        print(f"{name:40}", *(f"{key} {error:+.1%}" for key, error in errors.items()), flush=True)
        in_order = [rows[name] for name in every if name in rows]
        write("memory", "memory_prediction", {"summary": summary(in_order), "configurations": in_order})


if __name__ == "__main__":
    main()
