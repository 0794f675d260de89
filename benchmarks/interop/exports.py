"""What a delta weighs in the forms that other programs read, and whether peft makes our logits of it.

    python -m benchmarks.interop.exports  # a minute or two on one idle core

A few steps of training on movie reviews give each support's values. Every adapter is loaded onto a fresh base by the
real peft, and its logits on 64 texts are held against those of the same model with the delta applied.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import taskedge as te
from benchmarks.cost.workload import Batch, setup
from benchmarks.cost.workload import trained as parameters
from benchmarks.record import figure, show, write
from taskedge.delta.interop.peft_layouts import LAYOUTS

RESULTS = ("exports.json",)

STEPS = 3
SUPPORTS: dict[str, dict[str, Any]] = {
    "one per neuron, taskedge": {"per_neuron": 1},
    "0.5 %, taskedge": {"budget": "0.5%"},
    "0.1 %, random": {"budget": "0.1%", "rule": "random"},
    "0.1 %, taskedge, global": {"budget": "0.1%", "allocation": "global"},
}
BAR = 1e-5


def trained(base: nn.Module, calibration: list[Batch], options: dict[str, Any]) -> te.Delta:
    model = copy.deepcopy(base)
    te.install(model, te.select(model, calibration, **options), step="activation").train()
    optimizer = torch.optim.AdamW(parameters(model), lr=3e-2)
    for batch in calibration[:STEPS]:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return te.extract(model)


@torch.no_grad()
def logits(model: nn.Module, batches: list[Batch]) -> Tensor:
    """[texts, labels]"""
    return torch.cat([model.eval()(**batch).logits for batch in batches])


def _unpadded(delta: te.Delta) -> int:
    """Bytes of fp32 factors whose rank is the lowest possible in every linear: distinct rows or columns of entries."""
    ranks = {
        name: min(len(linear.rows.unique()), len(linear.columns.unique())) for name, linear in delta.linears.items()
    }
    return sum(4 * rank * sum(delta.linears[name].shape) for name, rank in ranks.items())


def main() -> None:
    base, calibration = setup()
    shown = calibration[-2:]
    untrained = logits(base, shown)
    figures = []
    for name, options in SUPPORTS.items():
        delta = trained(base, calibration, options)
        expected = logits(te.apply(copy.deepcopy(base), delta), shown)
        with tempfile.TemporaryDirectory() as folder:
            size = te.save(delta, Path(folder, "delta")).stat().st_size
            patch = te.export(base, delta, Path(folder, "patch"), to="patch").bytes
            figures += [figure(f"entries: {name}", [delta.num_entries]), figure(f"delta: {name}", [size], unit="B")]
            figures += [figure(f"patch: {name}", [patch], unit="B")]
            for layout in LAYOUTS:
                done = te.export(base, delta, Path(folder, layout), to="peft", peft_type=layout)
                theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), Path(folder, layout))
                off = float((logits(theirs, shown) - expected).abs().max())
                figures += [figure(f"{layout}: {name}", [done.bytes], unit="B")]
                if layout == "lora":
                    figures += [figure(f"lora, without the padding to one rank: {name}", [_unpadded(delta)], unit="B")]
                else:
                    figures += [figure(f"{layout}, padded entries: {name}", [done.details["padded"]])]
                figures += [figure(f"{layout}, largest difference of logits: {name}", [off], bar=BAR)]
        moved = float((expected - untrained).abs().max())
        figures.append(figure(f"largest change of logits by training: {name}", [moved]))
    show(figures)
    setting = f"all-MiniLM-L6-v2 with a head of two classes, fp32; {STEPS} steps on batches of 32 x 128 tokens"
    write("interop", "exports", {"setting": setting, "figures": figures})


if __name__ == "__main__":
    main()
