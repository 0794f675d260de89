"""What every method of the accuracy benchmark costs: a step, the memory of a step, the file.

    python -m benchmarks.cost.method_costs  # some 15 minutes on one idle core; goes on where it stopped

Each method trains a copy of one base beside the frozen limit, their steps taking turns; a ratio is that of two
neighbors, in CPU time. Saved bytes are those of saved_bytes.py, less the frozen limit's. The file is the delta, the
adapter's weights, or what else was trained, with the head.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

import taskedge as te
from benchmarks.accuracy.methods import CALLBACKS, MEASURED, METHODS, Prepare
from benchmarks.accuracy.sweep import append
from benchmarks.cost.saved_bytes import saved_bytes
from benchmarks.cost.step_cost import step_of
from benchmarks.cost.workload import DROPOUT, ROWS, SETTING, TOKENS, frozen_limit, set_dropout, setup, trained
from benchmarks.record import figure, machine, results
from taskedge.forms.install import installation

RESULTS = ("method_costs.jsonl",)

PATH = results("cost") / "method_costs.jsonl"
ROUNDS = 7


def file_bytes(model: nn.Module) -> int:
    """What is kept of the training, in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        if installation(model) is not None:
            return te.save(te.extract(model), Path(folder, "task.safetensors")).stat().st_size
        if isinstance(model, peft.PeftModel):
            model.save_pretrained(folder)
            return Path(folder, "adapter_model.safetensors").stat().st_size
    return sum(parameter.numel() * parameter.element_size() for parameter in trained(model))


def ratios(ours: nn.Module, limit: nn.Module, batch: Any) -> list[float]:
    """CPU seconds of a step over those of the frozen limit's beside it, the first pair not counted."""
    steps = {"ours": step_of(ours, batch, None), "limit": step_of(limit, batch, None)}
    draw, found = random.Random(0), []
    for _ in range(ROUNDS + 1):
        seconds = {}
        for name in draw.sample(sorted(steps), 2):
            start = time.process_time()
            steps[name]()
            seconds[name] = time.process_time() - start
        found.append(seconds["ours"] / seconds["limit"])
    return found[1:]


def measure(prepares: Mapping[str, Prepare], path: Path) -> None:
    """Append a line a method to a file of results; methods that are on file are left out."""
    base, calibration = setup()
    batch = calibration[0]
    path.touch()
    done = {json.loads(line)["method"] for line in path.read_text().splitlines()}
    limit = frozen_limit(copy.deepcopy(base), calibration).train()
    for name, prepare in prepares.items():
        if name in done:
            continue
        model, facts = prepare(copy.deepcopy(base), calibration, 0)
        model.train()
        costs: dict[str, Any] = {
            "method": name,
            "setting": SETTING,
            "machine": machine(),
            "file_bytes": file_bytes(model),
        }
        for dropout in DROPOUT:
            for each in (model, limit):
                set_dropout(each, dropout)
            above = saved_bytes(model, batch) - saved_bytes(limit, batch)
            costs[f"dropout {dropout:g}"] = {
                "saved_bytes_per_token": above / (ROWS * TOKENS),
                "step": figure("step / frozen limit", ratios(model, limit, batch)),
            }
        append(path, costs | {key: fact for key, fact in facts.items() if key not in (CALLBACKS, MEASURED)})
        print(name, costs["file_bytes"], costs["dropout 0"], flush=True)
        torch.manual_seed(0)


def main() -> None:
    measure({name: method.prepare for name, method in METHODS.items()}, PATH)


if __name__ == "__main__":
    main()
