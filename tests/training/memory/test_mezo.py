"""Zeroth order: the slope is that of the loss, the update that of the formula, and no graph is ever made."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from rotation_model import Watch, collate, model, rows
from torch import nn

from taskedge.training.data_order import derive_seed
from taskedge.training.memory.mezo import Mezo, parameter_groups
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=3, batch_size=4, accumulate=2, lr=1e-2, seed=5, checkpoint_every=2, optimizer="mezo")


def directions(seed, step, parameters):
    """The formula, written again."""
    draw = torch.Generator().manual_seed(derive_seed(seed, step))
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


@pytest.mark.slow
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
    return made, train(made, rows(), collate, settings, folder, progress=False, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny.state(run(tmp_path_factory.mktemp("whole"))[0])


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[1], [2], [3, 6, 9]])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, uninterrupted, stops):
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, resume=True, callbacks=[Watch(step)])
        torch.rand(7)
    assert tiny.same_bits(run(tmp_path, resume=True)[0].state_dict(), uninterrupted)


@pytest.mark.slow
def test_it_is_decided_by_the_seed(tmp_path, uninterrupted):
    assert tiny.same_bits(run(tmp_path)[0].state_dict(), uninterrupted)
    other = TrainerConfig(**SETTINGS.model_dump() | {"seed": 6})
    assert not tiny.same_bits(run(tmp_path, other)[0].state_dict(), uninterrupted)


def test_a_run_makes_no_graph_and_gives_the_loss(tmp_path, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        _, done = run(tmp_path, TrainerConfig(**SETTINGS.model_dump() | {"micro_batch": 2}))
    assert done.steps == 12
    assert done.loss == pytest.approx(math.log(tiny.LABELS), rel=0.1)


def head_of(made):
    return [name for name, parameter in made.named_parameters() if parameter.requires_grad and "classifier" in name]


def test_exact_groups_get_the_mean_gradient_of_the_two_sides_and_adamw():
    """Against autograd and torch's AdamW: the entries move by the slope as without, the head by its own gradient."""
    made, given = model().double().eval(), tiny.batch(model())
    named = {name: p for name, p in made.named_parameters() if p.requires_grad}
    head = {name: p for name, p in named.items() if name in head_of(made)}
    entries = {name: p for name, p in named.items() if name not in head}
    twin = [nn.Parameter(p.detach().clone()) for p in head.values()]
    adamw = torch.optim.AdamW(twin, lr=0.05, weight_decay=0.1)
    groups = [
        {"params": list(entries.values())},
        {"params": list(head.values()), "lr": 0.05, "weight_decay": 0.1, "exact": True},
    ]
    mezo = Mezo(groups, lr=0.1, perturbation=1e-4, seed=3)
    for step in range(3):
        start = [p.detach().clone() for p in entries.values()]
        sides = []
        for side in (1, -1):
            for p, z in zip(entries.values(), directions(3, step, entries.values()), strict=True):
                p.data.add_(z, alpha=side * 1e-4)
            sides.append(made(**given).loss)
            for p, position in zip(entries.values(), start, strict=True):
                p.data.copy_(position)
        gradients = torch.autograd.grad(sum(sides) / 2, list(head.values()))
        for p, gradient in zip(twin, gradients, strict=True):
            p.grad = gradient
        adamw.step()
        mezo.probe(lambda: made(**given).loss)
        slope = float(sides[0] - sides[1]) / 2e-4
        assert mezo.slope == pytest.approx(slope, rel=1e-6)
        mezo.step()
        for p, position, z in zip(entries.values(), start, directions(3, step, entries.values()), strict=True):
            torch.testing.assert_close(p.detach(), position - 0.1 * slope * z, rtol=1e-6, atol=1e-9)
            assert p.requires_grad
            assert p.grad is None
    for p, expected in zip(head.values(), twin, strict=True):
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-6, atol=1e-9)


def test_a_run_keeps_nothing_of_the_model_below_the_head(tmp_path):
    """What autograd saves in a run with an exact head is less than the least that a backward pass through it needs."""
    sizes = []

    def noted(tensor):
        sizes.append(tensor.numel())
        return tensor

    made = model()
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        train(made, rows(), collate, SETTINGS, tmp_path, progress=False, head=head_of(made))
    rows_at_once, width = SETTINGS.rows_per_pass, 16
    assert sizes
    assert max(sizes) <= max(rows_at_once * width, width * tiny.LABELS)


def test_a_model_is_parted_into_what_is_probed_and_a_real_head():
    made = model()
    inside = next(p for name, p in made.named_parameters() if name.endswith("LayerNorm.bias"))
    inside.requires_grad_(True)
    named = {name: p for name, p in made.named_parameters() if p.requires_grad}
    head = [named[name] for name in head_of(made)]
    probed, exact = parameter_groups(made, named)
    assert (probed["exact"], exact["exact"]) == (False, True)
    assert {id(p) for p in exact["params"]} == {id(p) for p in head}
    assert any(p is inside for p in probed["params"])
    assert len(probed["params"]) + len(head) == len(named)
    (alone,) = parameter_groups(made, [])
    assert len(alone["params"]) == len(named)


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[1], [3, 6, 9]])
def test_an_interrupted_run_with_an_exact_head_ends_with_the_same_bits(tmp_path, stops):
    whole, _ = run(tmp_path / "whole", head=head_of(model()))
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", resume=True, callbacks=[Watch(step)], head=head_of(model()))
        torch.rand(7)
    again, _ = run(tmp_path / "run", resume=True, head=head_of(model()))
    assert tiny.same_bits(again.state_dict(), whole.state_dict())
    other, _ = run(tmp_path / "other")
    assert not tiny.same_bits(other.state_dict(), whole.state_dict())


def test_only_a_real_head_is_exact(tmp_path, monkeypatch):
    """A parameter inside the model that trains whole would take its whole backward pass: it is probed."""

    def refuse(*given, **named):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    made = model()
    inside = next(name for name, p in made.named_parameters() if name.endswith("LayerNorm.bias"))
    dict(made.named_parameters())[inside].requires_grad_(True)
    for name in head_of(made):
        dict(made.named_parameters())[name].requires_grad_(False)
    train(made, rows(), collate, SETTINGS, tmp_path, progress=False, head=[inside])


def test_what_does_not_require_gradients_stays():
    frozen, moving = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    mezo = Mezo([frozen, moving], lr=0.1)
    mezo.probe(lambda: (frozen + moving).square().sum())
    mezo.step()
    assert torch.equal(frozen, torch.ones(3))
    assert not torch.equal(moving, torch.ones(3))
