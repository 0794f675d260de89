"""Zeroth order: the slope is that of the loss, the update that of the formula, and no graph is ever made."""

from __future__ import annotations

import dataclasses
import math

import pytest
import tiny
import torch
from test_rotate import Watch, collate, model, rows
from torch import nn

from taskedge.training.fit import fit
from taskedge.training.fit_settings import FitSettings
from taskedge.training.rungs.mezo import Mezo
from taskedge.training.seeds import derive

SETTINGS = FitSettings(epochs=3, batch_size=4, accumulate=2, lr=1e-2, seed=5, checkpoint_every=2, optimizer="mezo")


def directions(seed, step, parameters):
    """The formula, written again."""
    draw = torch.Generator().manual_seed(derive(seed, step))
    return [torch.randn(parameter.shape, generator=draw).to(parameter.dtype) for parameter in parameters]


def quadratic():
    """Loss ``θᵀAθ/2 + bᵀθ``, whose slope along z is ``(Aθ + b)·z`` whatever ε is."""
    torch.manual_seed(0)
    half = torch.randn(6, 6, dtype=torch.float64)
    a, b = half @ half.T, torch.randn(6, dtype=torch.float64)
    theta = nn.Parameter(torch.randn(6, dtype=torch.float64))
    return theta, a, b, lambda: theta @ a @ theta / 2 + b @ theta


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_the_slope_on_a_quadratic(epsilon):
    theta, a, b, loss = quadratic()
    mezo = Mezo([theta], lr=0.1, perturbation=epsilon, seed=4)
    before = theta.detach().clone()
    mean = mezo.probe(loss)
    (z,) = directions(4, 0, [theta])
    assert mezo.slope == pytest.approx(float((a @ before + b) @ z), rel=1e-9)
    assert float(mean) == pytest.approx(loss().item() + epsilon**2 * float(z @ a @ z) / 2, rel=1e-9)
    assert torch.equal(tiny.bits(theta), tiny.bits(before))  # back where it was, to the bit


def test_the_update_is_that_of_the_formula():
    theta, a, b, loss = quadratic()
    mezo = Mezo([{"params": [theta], "lr": 0.01, "weight_decay": 0.1}], lr=1.0, seed=4)
    expected = theta.detach().clone()
    for step in range(5):
        (z,) = directions(4, step, [theta])
        slope = (a @ expected + b) @ z
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * slope * z
        mezo.probe(loss)
        mezo.step()
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-7, atol=1e-10)


def test_it_descends():
    theta, a, b, loss = quadratic()
    lowest = float(-(b @ torch.linalg.solve(a, b)) / 2)
    mezo = Mezo([theta], lr=5e-3)
    start = float(loss())
    for _ in range(1500):
        mezo.probe(loss)
        mezo.step()
    assert float(loss()) - lowest < 0.05 * (start - lowest)


def test_parts_of_a_step_add_up():
    theta, _, _, loss = quadratic()
    whole, parts = Mezo([theta], lr=0.1), Mezo([theta], lr=0.1)
    whole.probe(loss)
    parts.probe(lambda: loss() * 0.25)
    parts.probe(lambda: loss() * 0.75)
    assert parts.slope == pytest.approx(whole.slope, rel=1e-9)


def test_the_positions_come_back_when_the_loss_fails():
    theta, _, _, _ = quadratic()
    before = theta.detach().clone()
    with pytest.raises(ZeroDivisionError):
        Mezo([theta], lr=0.1).probe(lambda: 1 / 0)
    assert torch.equal(theta.detach(), before)


def test_the_slope_along_the_entries_of_a_model():
    """Against autograd: what a direction says is the gradient's share in it, step sizes of entries included."""
    made = model().double().eval()
    given = tiny.batch(made)
    made(**given).loss.backward()
    trained = tiny.trained(made)
    expected = sum(float((p.grad.double() * z).sum()) for p, z in zip(trained, directions(0, 0, trained), strict=True))
    made.zero_grad()
    mezo = Mezo(trained, lr=0.1, perturbation=1e-4)
    mezo.probe(lambda: made(**given).loss)
    assert mezo.slope == pytest.approx(expected, rel=1e-3)
    assert all(parameter.grad is None for parameter in trained)


def run(folder, settings=SETTINGS, **options):
    made = model()
    torch.manual_seed(0)
    return made, fit(made, rows(), collate, settings, folder, progress=False, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.state(run(tmp_path_factory.mktemp("whole"))[0])


@pytest.mark.parametrize("stops", [[1], [2], [3, 6, 9]])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=True, callbacks=[Watch(step)])
        torch.rand(7)
    assert tiny.same_bits(run(tmp_path, resume=True)[0].state_dict(), uninterrupted)


def test_it_is_decided_by_the_seed(tmp_path, uninterrupted):
    assert tiny.same_bits(run(tmp_path)[0].state_dict(), uninterrupted)
    assert not tiny.same_bits(run(tmp_path, dataclasses.replace(SETTINGS, seed=6))[0].state_dict(), uninterrupted)


def test_a_run_makes_no_graph_and_gives_the_loss(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        _, done = run(tmp_path, dataclasses.replace(SETTINGS, micro_batch=2))
    assert done.steps == 12
    assert done.loss == pytest.approx(math.log(tiny.LABELS), rel=0.1)


def test_what_does_not_require_gradients_stays():
    frozen, moving = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    mezo = Mezo([frozen, moving], lr=0.1)
    mezo.probe(lambda: (frozen + moving).square().sum())
    mezo.step()
    assert torch.equal(frozen, torch.ones(3))
    assert not torch.equal(moving, torch.ones(3))
