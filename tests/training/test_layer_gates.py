"""The penalty on gates of layers, and runs with gates: resumed to the same bytes, with lines and provenance."""

from __future__ import annotations

import signal

import pytest
import tiny
import torch
from killed_runs import killed_at
from tiny_task import forked, tuning
from torch import nn

from taskedge.delta.file import load
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.norms import norm_statistics
from taskedge.forms.taps import layer_gates
from taskedge.training import checkpoint
from taskedge.training.callbacks import TrainState
from taskedge.training.layer_gates import LayerGatePenalty
from taskedge.training.optimizer import make_optimizer
from taskedge.training.trainer_config import TrainerConfig


def state_of(model, max_steps=10):
    return TrainState(model, torch.optim.SGD(tiny.trained(model), lr=0.1), max_steps)


def test_the_penalty_begins_after_the_warm_up_and_is_the_gradient_of_the_mean():
    model, lines = install_taps(tiny.bert(), taps_support(tiny.bert())), []
    penalty, state = LayerGatePenalty(6.0, 0.25, lines.append), state_of(model)
    gates = layer_gates(model)
    next(iter(gates.values())).score.data.fill_(-0.2)
    for step in range(10):
        state.step = step
        model.zero_grad()
        penalty.on_step_begin(state)
        grads = [gate.score.grad for gate in gates.values()]
        if step < 3:  # a quarter of ten steps, rounded up
            assert grads == [None] * 12
            continue
        scores = [gate.score.detach().clone().requires_grad_() for gate in gates.values()]
        expected = torch.autograd.grad(6.0 * torch.cat(scores).abs().mean(), scores)
        assert all(torch.allclose(one, other) for one, other in zip(grads, expected, strict=True))
    state.step = 10
    penalty.on_step_end(state)
    assert lines == ["the penalty on 12 gates begins after 3 steps: 11 are open", "11 of 12 gates are open"]


class Branches(nn.Module):
    """The sum of linears, each with an input of its own: the loss is convex in every one of them."""

    def __init__(self, count=6):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(3, 2, bias=False) for _ in range(count))

    def forward(self, x):
        return sum(part(x[:, index]) for index, part in enumerate(self.parts))


def open_gates(penalty):
    """Train on targets that need some branches more than others; return the number of open gates."""
    torch.manual_seed(0)
    model = Branches()
    x = torch.randn(64, 6, 3)
    target = model(x).detach() + sum(0.15 * index * x[:, index] @ torch.randn(3, 2) for index in range(6))
    install_taps(model, taps_support(model, only=["parts.*"]), trainable=[], rate=1e-2)
    callback, state = LayerGatePenalty(penalty, 0.1, lambda _: None), state_of(model, 150)
    optimizer = torch.optim.SGD(tiny.trained(model), lr=0.02)
    for step in range(150):
        state.step = step
        callback.on_step_begin(state)
        (model(x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(gate.is_open for gate in layer_gates(model).values())


@pytest.mark.slow
def test_a_larger_penalty_never_opens_more():
    counts = [open_gates(penalty) for penalty in (0.0, 0.3, 1.0, 3.0, 30.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6
    assert counts[-1] == 0
    assert len({*counts}) > 2


def test_a_checkpoint_holds_the_running_statistics_of_the_task(tmp_path):
    model = install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task")
    tiny.train(model.train(), steps=2)
    path = checkpoint.write(tmp_path, state_of(model))
    other = install_taps(tiny.resnet(), taps_support(tiny.resnet()), norms="task")
    assert not tiny.same_bits(norm_statistics(other), norm_statistics(model))
    checkpoint.Checkpoint(path).restore_parameters(other)
    assert tiny.same_bits(norm_statistics(other), norm_statistics(model))
    batch = tiny.batch(model)
    assert torch.equal(tiny.logits(other.eval(), batch), tiny.logits(model.eval(), batch))


def test_scores_have_a_rate_of_their_own_and_no_decay():
    model = install_taps(tiny.bert(), taps_support(tiny.bert()), rate=4e-3)
    optimizer = make_optimizer(model, TrainerConfig(lr=1e-4, weight_decay=0.1), ())
    group = optimizer.param_groups[-1]
    assert (group["initial_lr"], group["weight_decay"]) == (4e-3, 0.0)
    assert {id(one) for one in group["params"]} == {id(gate.score) for gate in layer_gates(model).values()}
    everything = [id(one) for each in optimizer.param_groups for one in each["params"]]
    assert sorted(everything) == sorted(map(id, tiny.trained(model)))


PENALTIES = {"taps": 0.03, "sparse_taps": 0.01}
"""With these some gates close and some stay open."""


def gating(task, form, *more):
    """Return the arguments of a run of 12 steps in which some gates close, with a checkpoint at every step."""
    arguments = tuning(
        task, "--form", form, "--lr", "0.01", "--gate-penalty", PENALTIES[form], "--gate-lr", 0.02, *more
    )
    if form == "taps":
        budget = arguments.index("--budget")
        arguments = [*arguments[:budget], *arguments[budget + 2 :]]
    return [*arguments, "--checkpoint-every", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["taps", "sparse_taps"])
def test_a_resumed_run_ends_with_the_same_bytes(task, tmp_path, form):
    """It is killed after gates have closed."""
    whole = tmp_path / "whole.safetensors"
    ended = forked(gating(task, form, "--out", whole))
    assert ended.code == 0, ended.err
    delta = load(whole)
    training = delta.provenance.training
    assert (training["form"], training["gate_penalty"]) == (form, PENALTIES[form])
    assert training["closed_layers"]
    assert delta.linears
    assert not {*training["closed_layers"]} & delta.linears.keys()
    assert f"{len(delta.linears)} of" in ended.err
    out = tmp_path / "killed.safetensors"
    killed = killed_at(checkpoint, "write", call=9, after=True)
    assert forked(gating(task, form, "--out", out), killed).code == -signal.SIGKILL
    assert forked(gating(task, form, "--out", out, "--resume")).code == 0
    assert out.read_bytes() == whole.read_bytes()
