"""Whether combining by index gives what PEFT's functions give on dense tensors, and what each costs.

    python -m benchmarks.combination.merge_equality  # two minutes on one busy core

Four deltas of all-MiniLM-L6-v2 with one entry per neuron: two on supports of the rule ``taskedge``, two on random ones.
PEFT prunes shares of a tensor, and ``combine`` prunes shares of a support, so PEFT's density is set to keep the same
number of values. For DARE both sides get the same random draws.
"""

from __future__ import annotations

import copy
import time
from typing import Any
from unittest import mock

import peft.utils.merge_utils as oracle
import torch
from torch import Tensor, nn

import taskedge as te
from benchmarks.cost.workload import Batch, setup
from benchmarks.record import figure, show, write
from taskedge.delta.combination.methods import METHODS, Choice
from taskedge.delta.combination.task_vectors import TaskVector, task_vector
from taskedge.forms.sparse import sparse_layers

RESULTS = ("merge_equality.json",)

BAR = 1e-6
DENSITIES = {"arithmetic": 1.0, "magnitude": 0.5, "ties": 0.5, "dare": 0.5}
WEIGHTS = [1.0, 0.7, 1.3, 0.4]


def deltas(base: nn.Module, calibration: list[Batch]) -> list[te.Delta]:
    made = []
    for seed in range(4):
        model = copy.deepcopy(base)
        rule = "random" if seed % 2 else "taskedge"
        batches = [calibration[seed]] if rule == "taskedge" else None
        te.install(model, te.select(model, batches, per_neuron=1, rule=rule, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in sparse_layers(model).values():
                layer.entries.offsets += 0.01 * torch.randn(len(layer.entries.rows), generator=generator)
        made.append(te.extract(model))
    return made


def dense(vector: TaskVector, name: str, shape: torch.Size, masks: dict[str, Tensor] | None = None) -> Tensor:
    full = torch.zeros(shape, dtype=torch.float64)
    part = vector.linears[name]
    kept = torch.ones(len(part), dtype=torch.bool) if masks is None else masks[name]
    full.view(-1)[part.flat[kept]] = part.differences[kept]
    return full


def theirs(name: str, tensors: list[Tensor], weights: Tensor, kept: int, draws: list[Tensor], density: float) -> Tensor:
    """PEFT's function on dense tensors; ``kept`` values of each survive pruning."""
    share = (kept + 0.5) / tensors[0].numel()
    if name == "arithmetic":
        return oracle.task_arithmetic(tensors, weights)
    if name == "magnitude":
        return oracle.magnitude_prune(tensors, weights, share)
    if name == "ties":
        return oracle.ties(tensors, weights, share)
    with mock.patch.object(oracle.torch, "bernoulli", side_effect=draws):
        return oracle.dare_linear(tensors, weights, density)


@torch.no_grad()
def main() -> None:
    base, calibration = setup()
    with torch.enable_grad():
        made = deltas(base, calibration)
    vectors = [task_vector(base, delta, f"d{index}") for index, delta in enumerate(made)]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    figures: list[dict[str, Any]] = []
    lines: list[str] = []
    for name, density in DENSITIES.items():
        method = "arithmetic" if name == "magnitude" else name
        start = time.process_time()
        combined = te.combine(made, base, method=method, density=density, weights=WEIGHTS, seed=5, log=lines.append)
        ours_seconds = time.process_time() - start
        generator = torch.Generator().manual_seed(5)
        masks = [METHODS[method].keep(vector, Choice(density, generator)) for vector in vectors]
        worst, their_seconds = 0.0, 0.0
        model = te.apply(copy.deepcopy(base), combined.with_head("task1"))
        for linear in vectors[0].linears:
            shape = before[f"{linear}.weight"].shape
            tensors = [dense(vector, linear, shape) for vector in vectors]
            pairs = zip(vectors, masks, strict=True)
            draws = [(dense(vector, linear, shape, mask) != 0).double() for vector, mask in pairs]
            kept = int(density * len(vectors[0].linears[linear]))
            start = time.process_time()
            expected = theirs(name, tensors, weights, kept, draws, density)
            their_seconds += time.process_time() - start
            got = model.get_submodule(linear).weight.double() - before[f"{linear}.weight"].double()
            worst = max(worst, float((got - expected).abs().max()))
        figures.append(figure(f"{name}: largest difference to PEFT on dense tensors", [worst], bar=BAR))
        figures.append(figure(f"{name}: CPU seconds by index, checks included", [ours_seconds], unit="s"))
        figures.append(figure(f"{name}: CPU seconds of PEFT's function alone", [their_seconds], unit="s"))
    show(figures)
    overlaps = lines[: 4 * 3 // 2]
    setting = "all-MiniLM-L6-v2 in fp32, four deltas of one entry per neuron, two by rule taskedge and two random"
    write("combination", "merge_equality", {"setting": setting, "figures": figures, "overlaps": overlaps})


if __name__ == "__main__":
    main()
