"""One pass answers every task of a delta with gates: as the applied deltas do, and at the stated cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import tiny_server
import torch
from torch import Tensor, nn

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import Linear, linears
from taskedge.delta.delta import Delta, Head, LinearDelta, Provenance
from taskedge.delta.gated_rows import GatedRows
from taskedge.errors import InputError
from taskedge.serving.one_pass import OnePass
from taskedge.serving.served_task import logits_of
from taskedge.training.many.trunk_cost import TrunkCost


def gated_delta(model: nn.Module, deltas: dict[str, Delta], departures: dict[str, int]) -> Delta:
    """Make one delta of two: the first one's entries are shared, and each task has rows of its own from a block on."""
    cost, layers = TrunkCost.of_model(model), linears(model)
    first = next(iter(deltas.values()))
    heads = {}
    for seed, (name, delta) in enumerate(deltas.items()):
        gated = {
            key: own_rows(layers[key], shared, seed)
            for key, shared in first.linears.items()
            if cost.block_of(key) >= departures[name]
        }
        heads[name] = Head(delta.full_parameters, delta.provenance, gated)
    return Delta(first.linears, {}, Provenance(task="text-classification"), heads=heads)


def own_rows(layer: Linear, shared: LinearDelta, seed: int) -> GatedRows:
    """Half of the rows with new values at the shared positions."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(shared.shape[0], generator=generator) < 0.5
    gates[0] = True
    kept = gates[shared.rows]
    values = shared.values[kept] + torch.randn(int(kept.sum()), generator=generator)
    part = GatedRows(shared.shape, gates, shared.rows[kept], shared.columns[kept], values, shared.base_dtype, "")
    rows, columns, _ = part.entries(shared)
    return replace(part, base_digest=digest(layer.read(rows, columns)))


@pytest.fixture(scope="module")
def base(bert_tasks):
    """(folder, two classifiers of one base)."""
    folder, deltas, _ = bert_tasks
    return folder, {name: deltas[name] for name in ("a", "b")}


def one_pass(base, tmp_path, departures: tuple[int, int]):
    """Return (the pass, the served tasks by head, a batch, the engine)."""
    folder, deltas = base
    tasks, engine = tiny_server.parts(folder)
    view = tasks.base.view("text-classification", tiny_server.LABELS["a"])
    delta = gated_delta(view.base.model, deltas, dict(zip(deltas, departures, strict=True)))
    path = te.save(delta, tmp_path / "both.safetensors")
    served = {task.name.partition(".")[2]: task for task in tasks.add("both", path)}
    first = served["a"]
    rows = tiny_server.rows_of(first.task, view.base, tiny_server.TEXTS)
    return OnePass(te.load(path), served), served, first.task.collate(view.base)(rows), engine


@pytest.mark.parametrize("departures", list(itertools.product(range(3), repeat=2)))
def test_answers_are_those_of_each_task_alone_and_the_cost_is_counted(base, tmp_path, departures):
    found, served, batch, engine = one_pass(base, tmp_path, departures)
    try:
        model = served["a"].view.base.model
        names = TrunkCost.of_model(model).names
        counted = {"products": 0}

        def count(module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            counted["products"] += args[0].flatten(0, -2).shape[0] * module.weight.numel()

        handles = [
            module.register_forward_hook(count)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.startswith(tuple(f"{block}." for block in names))
        ]
        logits_of(served["a"].view, batch, [None] * len(batch["input_ids"]))
        of_one, counted["products"] = counted["products"], 0
        answers = found.logits(batch)
        assert counted["products"] / of_one == pytest.approx(found.cost)
        for handle in handles:
            handle.remove()
        for name, task in served.items():
            alone = logits_of(task.view, batch, [task.table] * len(batch["input_ids"]))[:, : task.num_outputs]
            assert torch.allclose(answers[name], alone, atol=1e-5)
            assert answers[name].shape == alone.shape
    finally:
        engine.close()


def test_the_model_is_the_base_afterwards(base, tmp_path):
    found, served, batch, engine = one_pass(base, tmp_path, (1, 2))
    try:
        view = served["a"].view
        before = logits_of(view, batch, [None] * len(batch["input_ids"]))
        found.logits(batch)
        assert torch.equal(logits_of(view, batch, [None] * len(batch["input_ids"])), before)
    finally:
        engine.close()


def test_tasks_that_share_no_batch_are_refused(base, tmp_path):
    _, served, _, engine = one_pass(base, tmp_path, (0, 1))
    engine.close()
    delta = te.load(tmp_path / "both.safetensors")
    alone = {name: replace(task, alone="it has low-rank products") for name, task in served.items()}
    with pytest.raises(InputError, match="shares no batch with others: it has low-rank products"):
        OnePass(delta, alone)
    with pytest.raises(InputError, match="the tasks of one delta"):
        OnePass(delta, {"a": served["a"]})
