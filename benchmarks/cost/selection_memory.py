"""What gradient rules hold in memory above a backward pass that makes no weight gradient at all.

    python -m benchmarks.cost.selection_memory  # under two minutes on one core

Torch's profiler reports every allocation and release of its CPU allocator, which all tensors come from; the peak is
that of the running sum of these bytes. The process's resident size would say less: pages of the model's file and freed
memory that the allocator keeps are in it too. Sums on the disk pass through small tensors, which are counted.

The yardstick is a *plain backward pass*: the same batches, graph and saved activations as those of the rule, but only
the gradient of the lowest weight is asked of autograd, which makes that one last. The other yardstick leaves all
gradients in `.grad`, as a loop that adds them up in memory does. Beside full batches stands one of a single short text:
there activations hide nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import taskedge as te
from benchmarks.cost.workload import Batch, setup
from benchmarks.record import figure, show, write
from taskedge.backbone.candidates import candidates

RESULTS = ("selection_memory.json",)

BAR, BATCHES = 1.2, 2
RULES = ("gradient", "fisher", "spt")


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch's CPU allocator holds during ``work``, above what it holds before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    held = most = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def backward(model: nn.Module, weights: list[nn.Parameter], batches: list[Batch], *, keep: bool) -> None:
    """Over all batches, with the graph that the gradients of all ``weights`` need; keeps all of these, or none."""
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    for batch in batches:
        loss = model(**batch).loss
        if keep:
            loss.backward()
        else:
            torch.autograd.grad(loss, weights[0])
    model.zero_grad()
    model.requires_grad_(True)


def measure(model: nn.Module, batches: list[Batch]) -> dict[str, int]:
    """Peak bytes of the two yardsticks and of a selection by each rule."""
    weights = [linear.module.weight for linear in candidates(model).values()]
    return {
        "plain": peak_bytes(lambda: backward(model, weights, batches, keep=False)),
        "kept": peak_bytes(lambda: backward(model, weights, batches, keep=True)),
    } | {rule: peak_bytes(partial(te.select, model, batches, budget="0.1%", rule=rule)) for rule in RULES}


def main() -> None:
    model, batches = setup()
    model.eval()
    full = batches[:BATCHES]
    short = [
        {name: tensor[:1, :16] if tensor.dim() == 2 else tensor[:1] for name, tensor in one.items()} for one in full
    ]
    sizes = [linear.weight.numel() * linear.weight.element_size() for linear in candidates(model).values()]
    figures, peaks = [], {}
    for title, given in (("full batches", full), ("one short text", short)):
        peaks[title] = found = measure(model, given)
        above = {name: (peak - found["plain"]) / max(sizes) for name, peak in found.items()}
        figures += [
            figure(f"{title}: {rule} above a plain backward / largest linear", [above[rule]], bar=BAR) for rule in RULES
        ]
        figures.append(figure(f"{title}: all gradients kept, the same", [above["kept"]]))
    figures += [
        figure("largest linear", [max(sizes) / 2**20], unit="MiB"),
        figure("all linears", [sum(sizes) / 2**20], unit="MiB"),
    ]
    show(figures)
    setting = (
        "all-MiniLM-L6-v2 in fp32, one thread, eval mode, all 36 encoder linears; "
        f"{BATCHES} calibration batches of 32 x 128 tokens, and of 1 x 16; peaks over the whole selection"
    )
    write("cost", "selection_memory", {"setting": setting, "figures": figures, "peak_bytes": peaks})


if __name__ == "__main__":
    main()
