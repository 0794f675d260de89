"""Gates on a few candidates of each neuron: the planted one is found, the base is restored, and phases resume."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.errors import InputError
from taskedge.selection.support import LayerSupport, Support
from taskedge.training import diff_pruning
from taskedge.training.callbacks import Callback
from taskedge.training.candidate_gates import best_of_neurons, find_among_candidates
from taskedge.training.checkpoint import latest
from taskedge.training.gates import GateConfig
from taskedge.training.trainer_config import TrainerConfig

OUT, IN, CANDIDATES = 30, 40, 8


class Regression(nn.Module):
    """A matrix with a squared loss, and one that nothing reads, so that the first is not taken for a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(IN, OUT, bias=False)
        self.head = nn.Linear(OUT, OUT, bias=False)

    def forward(self, x, labels):
        output = self.body(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def problem():
    """Return a model, rows, a support of 8 candidates a neuron, and the one column of each that the target changes."""
    torch.manual_seed(0)
    model = Regression()
    columns = torch.stack([torch.randperm(IN)[:CANDIDATES].sort().values for _ in range(OUT)])
    planted = columns[torch.arange(OUT), torch.randint(CANDIDATES, (OUT,))]
    change = torch.zeros(OUT, IN)
    change[torch.arange(OUT), planted] = torch.randn(OUT).sign() * (0.5 + torch.rand(OUT))
    scale = torch.logspace(-1, 1, IN)  # inputs of very different size: a change counts by its effect
    x = torch.randn(512, IN) * scale
    y = x @ (model.body.weight.detach() + change / scale).T
    rows = torch.arange(OUT).repeat_interleave(CANDIDATES)
    support = LayerSupport((OUT, IN), rows, columns.flatten(), "body", input_rms=scale)
    candidates = Support({"body": support}, OUT * (IN + OUT), rule="given", budget=f"{CANDIDATES} per neuron")
    return model, [{"x": x[i], "labels": y[i]} for i in range(512)], candidates, planted


def find(model, rows, candidates, folder, **more):
    config = TrainerConfig(epochs=10, lr=5e-2, batch_size=32, checkpoint_every=40)
    gates = GateConfig(penalty=1.0, structured=False)
    return find_among_candidates(
        model, candidates, rows, collate, config, gates, head=[], folder=folder, progress=False, **more
    )


def test_the_planted_candidate_of_every_neuron_is_found(tmp_path):
    model, rows, candidates, planted = problem()
    before = tiny.state(model)
    support = find(model, rows, candidates, tmp_path)
    found = support.linears["body"]
    assert found.rows.tolist() == list(range(OUT))
    assert support.settings["neuron_share"] == 1
    right = int((found.columns == planted).sum())
    assert right / OUT >= 0.95  # one entry a neuron on both sides: precision, recall and F1 are equal
    assert tiny.same_bits(before, tiny.state(model))
    assert OUT < support.settings["expected_share"] * support.model_parameters < 3 * OUT
    te.install(model, support, trainable=[], step="activation")
    changed = (model.body.weight != before["body.weight"]).flatten()
    assert changed.nonzero().flatten().tolist() == found.flat.tolist()
    moved = (model.body.weight.detach() - before["body.weight"])[found.rows, found.columns]
    torch.testing.assert_close(moved, support.start["body"], atol=1e-6, rtol=1e-5)


def test_an_interrupted_search_resumes_to_the_same_bits(tmp_path, monkeypatch):
    model, rows, candidates, _ = problem()
    whole = find(model, rows, candidates, tmp_path / "whole")

    class Stop(Callback):
        def on_step_end(self, state):
            if state.step == 100:
                raise KeyboardInterrupt

    made = diff_pruning.GateSteps
    monkeypatch.setattr(
        "taskedge.training.diff_pruning.GateSteps",
        type("Stopped", (made,), {"on_step_end": Stop.on_step_end}),
    )
    model, rows, candidates, _ = problem()
    before = tiny.state(model)
    with pytest.raises(KeyboardInterrupt):
        find(model, rows, candidates, tmp_path / "part")
    assert tiny.same_bits(before, tiny.state(model))
    assert latest(tmp_path / "part") is not None
    monkeypatch.undo()
    resumed = find(model, rows, candidates, tmp_path / "part", resume=True)
    assert torch.equal(resumed.linears["body"].flat, whole.linears["body"].flat)
    assert torch.equal(tiny.bits(resumed.start["body"]), tiny.bits(whole.start["body"]))


@pytest.mark.parametrize("count", [1, 2])
def test_the_best_of_each_neuron_are_kept(count):
    rows = torch.tensor([0, 0, 0, 2, 2, 3])
    sizes = torch.tensor([1.0, 3.0, 3.0, 0.0, 0.5, 0.0])
    expected = {1: [1, 4], 2: [1, 2, 4]}  # the first of equal ones; none of size 0
    assert best_of_neurons(rows, sizes, count).tolist() == expected[count]


@pytest.mark.parametrize("step", ["plain", "activation"])
def test_a_head_is_restored_and_brought(tmp_path, step):
    model = tiny.bert()
    before, batches = tiny.state(model), [tiny.batch(model)]
    candidates = te.select(model, batches, per_neuron=4)
    rows = [{"seed": seed} for seed in range(8)]
    support = find_among_candidates(
        model, candidates, rows, lambda some: tiny.batch(tiny.bert(), rows=len(some), seed=some[0]["seed"]),
        TrainerConfig(epochs=2, lr=1e-2, batch_size=4), GateConfig(penalty=0.0), per_neuron=2,
        head=["classifier.weight"], folder=tmp_path, step=step, progress=False,
    )  # fmt: skip
    assert tiny.same_bits(before, tiny.state(model))
    assert not torch.equal(support.start_full["classifier.weight"], before["classifier.weight"])
    assert all(int(torch.bincount(linear.rows).max()) <= 2 for linear in support.linears.values())
    te.install(model, support, trainable=["classifier.weight"], step=step)
    assert torch.equal(model.classifier.weight, support.start_full["classifier.weight"])


def test_candidates_are_entries(tmp_path):
    model, rows, _, _ = problem()
    with pytest.raises(InputError, match="gates choose among entries"):
        find(model, rows, Support({}, 100), tmp_path)
