"""What the forms of a change cost beside one another: numbers trained, file, stored activations, step.

    python -m benchmarks.cost.forms_cost  # some three minutes on one idle core

The same support for the sparse forms, no dropout. CPU time of the process, ratios within a round as in step_cost.py.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

import taskedge as te
from benchmarks.cost.saved_bytes import saved_bytes
from benchmarks.cost.step_cost import step_of
from benchmarks.cost.workload import SETTING, Batch, frozen_limit, set_dropout, setup, trained
from benchmarks.record import figure, show, write
from taskedge.backbone.candidates import candidates, head_parameters
from taskedge.selection.support import Support
from taskedge.training.lora import PeftLora

RESULTS = ("forms_cost.json",)

RANK = 8


def forms(base: nn.Module, calibration: list[Batch]) -> dict[str, tuple[nn.Module, Any]]:
    """For each form a model that trains it, and what makes a delta of that; the frozen limit makes none."""
    support = te.select(base, calibration, per_neuron=1)
    wide = Support({}, support.model_parameters, low_rank=dict.fromkeys(candidates(base), RANK))
    sparse, lora, low_rank, peft = (copy.deepcopy(base) for _ in range(4))
    adapter = PeftLora(peft, wide, head_parameters(peft), None, 0)
    te.install(sparse, support)
    te.install(lora, support, form="sparse_lora", rank=RANK)
    te.install(low_rank, wide)
    return {
        "frozen limit": (frozen_limit(copy.deepcopy(base), calibration), None),
        "sparse": (sparse, lambda: te.extract(sparse)),
        f"sparse_lora, r={RANK}": (lora, lambda: te.extract(lora)),
        f"low-rank module, r={RANK}": (low_rank, lambda: te.extract(low_rank)),
        f"lora (PEFT), r={RANK}": (peft, adapter.extract),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    base, calibration = setup()
    made = forms(base, calibration)
    batch = calibration[0]
    figures, steps = [], {}
    kept = {}
    for name, (model, extract) in made.items():
        set_dropout(model.train(), 0.0)
        kept[name] = saved_bytes(model, batch)
        steps[name] = step_of(model, batch, None)
        if extract is None:
            continue
        head = sum(tensor.numel() for tensor in extract().full_parameters.values())
        numbers = sum(parameter.numel() for parameter in trained(model)) - head
        with tempfile.TemporaryDirectory() as folder:
            size = te.save(extract(), Path(folder) / "x", head=False).stat().st_size
        figures += [figure(f"numbers trained: {name}", [numbers]), figure(f"file: {name}", [size], unit="B")]
        figures += [figure(f"saved bytes: {name} / frozen limit", [kept[name] / kept["frozen limit"]])]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    shuffle = random.Random(0).shuffle
    for turn in range(-1, rounds):
        order = list(steps)
        shuffle(order)
        for name in order:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    for name, taken in seconds.items():
        if name != "frozen limit":
            ratios = [one / limit for one, limit in zip(taken, seconds["frozen limit"], strict=True)]
            figures.append(figure(f"step: {name} / frozen limit", ratios))
    show(figures)
    write("cost", "forms_cost", {"setting": f"{SETTING}; no dropout; AdamW", "rounds": rounds, "figures": figures})


if __name__ == "__main__":
    main()
