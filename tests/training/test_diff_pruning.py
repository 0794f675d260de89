"""Diff pruning: a planted sparse change is found; open gates are plain training; closed ones leave the base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.errors import BudgetError
from taskedge.selection.support import load_support, save_support
from taskedge.training.checkpoint import Checkpoint, latest
from taskedge.training.diff_pruning import find_by_gates, gated_weights
from taskedge.training.gates import GateConfig
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

PLANTED = 36


class Regression(nn.Module):
    """A matrix with a squared loss, and one that nothing reads, so that the first is not taken for a head."""

    def __init__(self, width=40, out=30, *, head=False):
        super().__init__()
        self.body = nn.Linear(width, out, bias=False)
        self.head = nn.Linear(out, out, bias=head)
        self.has_head = head

    def forward(self, x, labels):
        output = self.body(x)
        output = self.head(output) if self.has_head else output
        return {"loss": (output - labels).square().mean(), "logits": output}


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def problem(*, head=False, dtype=torch.float32):
    """Return a model, rows whose targets are those of ``W + D`` with D of 36 entries, and the flat indices of D."""
    torch.manual_seed(0)
    model = Regression(head=head).to(dtype)
    generator = torch.Generator().manual_seed(1)
    planted = torch.randperm(1200, generator=generator)[:PLANTED]
    change = torch.zeros(1200, dtype=dtype)
    size = 0.5 + torch.rand(PLANTED, generator=generator)
    change[planted] = (torch.randn(PLANTED, generator=generator).sign() * size).to(dtype)
    x = torch.randn(512, 40, generator=generator, dtype=dtype)
    y = x @ (model.body.weight.detach() + change.view(30, 40)).T
    return model, [{"x": x[i], "labels": y[i]} for i in range(512)], set(planted.tolist())


def find(model, rows, folder, *, config=None, gates=None, budget=PLANTED / 2100, head=(), **more):
    config = config or TrainerConfig(epochs=10, lr=3e-2, batch_size=32)
    calibration = [collate(rows[:64])]
    return find_by_gates(
        model, rows, collate, calibration, config, gates or GateConfig(penalty=1.0), budget=budget, head=head,
        folder=folder, progress=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("structured", [True, False])
def test_a_planted_change_is_found(tmp_path, structured):
    model, rows, planted = problem()
    before = model.body.weight.detach().clone()
    support = find(model, rows, tmp_path, gates=GateConfig(penalty=1.0, structured=structured))
    found = set(support.linears["body"].flat.tolist())
    assert len(found) == PLANTED
    f1 = 2 * len(found & planted) / (len(found) + PLANTED)
    assert f1 >= 0.95
    assert torch.equal(model.body.weight, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert PLANTED < support.settings["expected_share"] * 2100 < 4 * PLANTED


def test_the_count_is_exact_and_only_chosen_entries_change(tmp_path):
    model, rows, _ = problem()
    before = model.body.weight.detach().clone()
    support = find(model, rows, tmp_path, budget=0.1, gates=GateConfig(penalty=0.0))
    assert support.num_entries == 210
    assert support.neuron_share == len(set(support.linears["body"].rows.tolist())) / model.body.weight.shape[0]
    te.install(model, support, trainable=[])
    changed = (model.body.weight != before).flatten()
    assert int(changed.sum()) == 210
    assert changed.nonzero().flatten().tolist() == support.linears["body"].flat.tolist()


def test_open_gates_without_a_penalty_are_plain_training_step_for_step(tmp_path):
    config = TrainerConfig(epochs=1, lr=1e-3, batch_size=32, clip=0.0, warmup=0.0)
    gates = GateConfig(penalty=0.0, start=30.0, clip=0.0)
    model, rows, _ = problem(dtype=torch.float64)
    support = find(model, rows, tmp_path / "gates", config=config, gates=gates, budget=1200 / 2100)
    plain, rows, _ = problem(dtype=torch.float64)
    base = plain.body.weight.detach().clone()
    train(plain, rows, collate, config, tmp_path / "plain", progress=False)
    change = (plain.body.weight.detach() - base).flatten()
    entries = support.linears["body"].flat  # outputs without a planted entry have no error and do not change
    assert support.num_entries == int((change != 0).sum()) > 500
    torch.testing.assert_close(support.start["body"].double(), change[entries], atol=1e-8, rtol=0)  # stored in fp32


def test_a_huge_penalty_leaves_the_head_only(tmp_path):
    model, rows, _ = problem(head=True)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    said = []
    names = ["head.weight", "head.bias"]
    gates = GateConfig(penalty=1e9)
    config = TrainerConfig(epochs=10, lr=1e-3, head_lr=1e-2, batch_size=32)
    support = find(model, rows, tmp_path, config=config, gates=gates, head=names, budget=0.01, log=said.append)
    assert (support.num_entries, support.share) == (0, 0.0)
    assert any("only 0 of the 21 entries of the budget changed" in line for line in said)
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert set(support.start_full) == set(names)
    assert not torch.equal(support.start_full["head.weight"], kept["head.weight"])


def rate_of_gates(folder):
    groups = Checkpoint(latest(folder))._header["groups"]
    return {group["constant"]: group["lr"] for group in groups}


def test_the_rate_of_the_gates_is_constant_and_that_of_the_changes_falls(tmp_path):
    model, rows, _ = problem()
    config = TrainerConfig(epochs=1, lr=1e-3, batch_size=32, checkpoint_every=8)
    find(model, rows, tmp_path, config=config)
    assert rate_of_gates(tmp_path) == {True: 0.1, False: pytest.approx(1e-3 / 16)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_draw_is_one_of_a_step_however_many_passes_it_takes(tmp_path, accumulate):
    whole = TrainerConfig(epochs=1, lr=1e-2, batch_size=32 * accumulate)
    parts = whole.model_copy(update={"batch_size": 32, "accumulate": accumulate, "micro_batch": 16})
    supports = []
    for name, config in (("whole", whole), ("parts", parts)):
        model, rows, _ = problem(dtype=torch.float64)
        supports.append(find(model, rows, tmp_path / name, config=config))
    one, other = (support.linears["body"].flat.tolist() for support in supports)
    assert one == other
    torch.testing.assert_close(supports[0].start["body"], supports[1].start["body"], atol=1e-6, rtol=0)


def test_the_third_phase_is_the_sparse_form_on_the_same_support_and_start(tmp_path):
    model, rows, _ = problem(head=True)
    support = find(model, rows, tmp_path / "gates", head=["head.weight", "head.bias"], gates=GateConfig(penalty=0.0))
    save_support(support, tmp_path / "support")
    config = TrainerConfig(epochs=1, lr=1e-2, batch_size=32)
    trained = []
    for one in (support, load_support(tmp_path / "support"), replace(support, start={}, start_full={})):
        model, rows, _ = problem(head=True)
        te.install(model, one, step="activation")
        if not one.start:  # set by hand what the support brings
            entries, change = model.body.entries, support.start["body"]
            with torch.no_grad():
                entries.offsets.copy_(change / entries.step)
                for name, value in support.start_full.items():
                    model.get_parameter(name).copy_(value)
        train(model, rows, collate, config, tmp_path / "train", progress=False)
        trained.append(tiny.state(te.fuse(model)))
    assert tiny.same_bits(trained[0], trained[1])
    assert tiny.same_bits(trained[0], trained[2])


@pytest.mark.parametrize("budget", [0.9, 1e-9])
def test_a_budget_without_gates_is_refused_before_any_step(tmp_path, budget):
    model, rows, _ = problem()
    with pytest.raises(BudgetError, match=r"cannot be chosen from 1,200 gated weights: give a (smaller|larger) share"):
        find(model, rows, tmp_path, budget=budget)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_model_gets_gates_and_keeps_its_bits(model, tmp_path):
    """Weights that are stored transposed give entries in rows and columns of the product."""
    if isinstance(model, tiny.Mlp):
        return  # it has no loss
    rows = [{key: value[0] for key, value in tiny.batch(model, rows=1, seed=seed).items()} for seed in range(8)]
    before = tiny.state(model)
    weights = {name: layer.weight.clone() for name, layer in linears(model).items()}
    config = TrainerConfig(epochs=1, lr=1e-2, batch_size=4)
    support = find(model, rows, tmp_path, config=config, gates=GateConfig(penalty=1.0), budget=0.01)
    assert tiny.same_bits(before, tiny.state(model))
    te.install(model, support, trainable=[])
    layers = linears(model)
    for name, linear in support.linears.items():
        change = (layers[name].weight - weights[name])[linear.rows, linear.columns]
        torch.testing.assert_close(change, support.start[name], atol=1e-6, rtol=0)


def test_the_memory_that_is_stated_is_eleven_copies(bert):
    weights = gated_weights(bert, "1%")
    assert weights.memory_bytes == 11 * 4 * weights.num_weights
    assert "eleven copies of these" in str(weights)
