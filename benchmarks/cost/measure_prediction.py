"""Predicted against real cost at depths that were not measured:

    OMP_NUM_THREADS=1 python -m benchmarks.cost.measure_prediction MODEL [--repeats 3]

``taskedge measure`` profiles three depths in one process. Every other depth is then trained for real in a process of
its own: the support installed on the blocks down to the depth only, a plain loop, the process's lifetime peak.
Both count the processor seconds of one thread, since the machine is shared with others; ``--clock wall`` counts wall
seconds. The whole is repeated, because the two share the machine's mood only as far as they run after each other.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planning.planning_record import machine
from benchmarks.record import write

RESULTS = ("measure_prediction.json",)

BATCH, LENGTH, STEPS, WARM = 8, 128, 11, 3


def profile(model: str, clock: str) -> dict[str, Any]:
    """What ``taskedge measure`` says, in a process of its own."""
    options = ["--model", model, "--batch-size", str(BATCH), "--length", str(LENGTH), "--steps", str(STEPS)]
    return call("-m", "taskedge.cli.main", "measure", *options, "--clock", clock, "--json")


def call(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return dict(json.loads(done.stdout))


def train(model: str, depth: int, clock: str) -> dict[str, float]:
    """Trains the blocks down to ``depth`` for real: median seconds of a step and the peak of this process."""
    import torch
    import transformers

    import taskedge as te
    from taskedge.backbone.blocks import blocks

    torch.manual_seed(1)
    loaded = transformers.AutoModel.from_pretrained(model).train()
    ids = torch.randint(5, loaded.config.vocab_size, (BATCH, LENGTH))
    patterns = [f"{block.name}.*" for block in blocks(loaded) if block.depth <= depth]
    te.install(loaded, te.select(loaded, [{"input_ids": ids}], per_neuron=1, linears=patterns), trainable=[])
    optimizer = torch.optim.AdamW([p for p in loaded.parameters() if p.requires_grad], lr=1e-6)
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds = []
    for _ in range(WARM + STEPS):
        start = now()
        loaded(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(seconds[WARM:]), "peak_bytes": peak}


def compare(model: str, clock: str) -> dict[str, Any]:
    """One profile, and one real run of every depth that it predicts."""
    predicted = profile(model, clock)
    measured = {row["depth"] for row in predicted["measured"]}
    rows = {}
    for depth in range(1, len(predicted["step_seconds"]) + 1):
        if depth in measured:
            continue
        real = call("-m", "benchmarks.cost.measure_prediction", model, "--depth", str(depth), "--clock", clock)
        seconds, held = predicted["step_seconds"][depth - 1], predicted["peak_bytes"][depth - 1]
        rows[str(depth)] = {
            "predicted_seconds": seconds,
            "real_seconds": real["seconds"],
            "seconds_off": seconds / real["seconds"] - 1,
            "predicted_peak_bytes": held,
            "real_peak_bytes": real["peak_bytes"],
            "peak_off": held / real["peak_bytes"] - 1,
            "peak_above_idle_off": (held - predicted["idle_bytes"]) / (real["peak_bytes"] - predicted["idle_bytes"])
            - 1,
        }
        print(
            depth, {key: round(value, 4) for key, value in rows[str(depth)].items() if key.endswith("off")}, flush=True
        )
    return {"profile": predicted, "depths": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", help="what to call the model in the record, instead of its folder")
    parser.add_argument("--depth", type=int, help="train this depth for real and print its cost")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    arguments = parser.parse_args()
    if arguments.depth:
        print(json.dumps(train(arguments.model, arguments.depth, arguments.clock)))
        return
    about, name = machine(), arguments.name or Path(arguments.model).name
    runs = [compare(arguments.model, arguments.clock) for _ in range(arguments.repeats)]
    summary = {
        depth: {
            f"{key}_{name}": float(fold([abs(run["depths"][depth][key]) for run in runs]))
            for key in ("seconds_off", "peak_off", "peak_above_idle_off")
            for name, fold in (("median", np.median), ("worst", np.max))
        }
        for depth in runs[0]["depths"]
    }
    print(json.dumps(summary, indent=1))
    setting = {"model": name, "batch": BATCH, "tokens": LENGTH, "steps": STEPS, "clock": arguments.clock}
    for run in runs:
        run["profile"]["machine"].pop("name")
    sys.argv = [name if argument == arguments.model else argument for argument in sys.argv]  # no local paths
    write("cost", "measure_prediction", {"setting": setting, "absolute_relative_error": summary, "runs": runs}, about)


if __name__ == "__main__":
    main()
