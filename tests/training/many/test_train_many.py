"""The three phases of the loop: what trains in each, and what is frozen at the end."""

from __future__ import annotations

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import TrainingDiverged
from taskedge.training.many.gated_model import GatedModel
from taskedge.training.many.train_many import TaskData, train_many


class Killed(Exception):
    """The end of a run after some step."""


def parts(target: float | None = None, *, last: int | None = None, **changes):
    """Train two tasks on a tiny base whose head they share, and return (result, model); end after step ``last``."""
    torch.manual_seed(0)
    base = tiny.bert()
    support = te.select(base, rule="random", budget="2%")
    model = GatedModel(base, support, [te.select(base, rule="random", budget="2%", seed=task) for task in (1, 2)])
    base.requires_grad_(False)
    rows = [[tiny.batch(base, seed=10 * task + n) for n in range(4)] for task in (0, 1)]
    tasks = [TaskData(f"t{n}", base, of_task, lambda chosen: chosen[0], []) for n, of_task in enumerate(rows)]
    settings = {"epochs": 5, "lr": 1e-2, "gate_lr": 0.3, "flops_weight": 1.0, "batch_size": 1, "seed": 0} | changes
    steps: list[int] = []

    def count(done: int) -> None:
        steps.append(done)
        if sum(steps) == last:
            raise Killed

    result = train_many(model, tasks, target=target, on_step=count, **settings)
    assert sum(steps) == result.steps == 20
    return result, model


def test_entries_train_and_gates_are_frozen() -> None:
    result, model = parts()
    assert all(not gate.requires_grad for gate in model.gate_parameters)
    for layer in model.by_name().values():
        for entries in (layer.shared, layer.own_entries(1)):
            assert not len(entries.rows) or bool(entries.offsets.abs().sum() > 0)
    assert (model.block_logits == 0.5).all(), "without a target every block stays open"
    assert all(torch.isfinite(torch.tensor(result.losses)))


@pytest.mark.parametrize("target", [1.0, 1.5])
def test_the_target_is_met_whatever_the_gates_learned(target) -> None:
    result, model = parts(target, flops_weight=0.0)
    departures = model.cost.departures(model.block_logits > 0)
    assert model.cost.of_departures(departures) <= target
    assert result.closed > 0, "without a weight in the loss, closing has to do it"


def test_the_hinge_leaves_less_to_close() -> None:
    with_hinge, model = parts(1.0, flops_weight=100.0, gate_lr=0.5)
    without, _ = parts(1.0, flops_weight=0.0, gate_lr=0.5)
    assert model.cost.of_departures(model.cost.departures(model.block_logits > 0)) == 1
    assert with_hinge.closed < without.closed


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(TrainingDiverged, match=r"t\d: the loss is (nan|inf) in step"):
        parts(lr=1e30)


@pytest.mark.parametrize(
    "last",
    [pytest.param(step, marks=[] if step == 17 else pytest.mark.slow) for step in (1, 7, 8, 9, 15, 16, 17, 19, 20)],
)
def test_a_run_that_ends_anywhere_goes_on_to_the_same_bits(tmp_path, last) -> None:
    """Steps 8 and 16 are the last of their phases; a checkpoint is written after every fourth."""
    whole, model = parts(1.5)
    with pytest.raises(Killed):
        parts(1.5, last=last, folder=tmp_path, checkpoint_every=4)
    again, resumed = parts(1.5, folder=tmp_path, checkpoint_every=4, resume=True)
    assert again == whole
    for (name, first), (_, second) in zip(model.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(first, second), name
