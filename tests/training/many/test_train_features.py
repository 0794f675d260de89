"""Gated networks learn, meet their target and freeze their gates."""

import digits_net
import pytest
import torch
from torch.nn.functional import cross_entropy

from taskedge.errors import InputError, TrainingDiverged
from taskedge.training.many.train_features import train_features

LOSSES = [cross_entropy] * 3


def batches(count: int):
    """Three tasks on the signs and the place of the largest of some inputs."""
    for seed in range(count):
        x = digits_net.inputs(32, seed)
        yield x, [(x[:, 0] > 0).long(), (x[:, 1] + x[:, 2] > 0).long(), x[:, 3:8].argmax(1)]


def trained(target=None, steps=60, **changes):
    model = digits_net.gated()
    digits_net.set_gates(model, open_=True)
    return model, train_features(model, batches(steps), LOSSES, steps=steps, lr=1e-2, target=target, **changes)


def test_the_tasks_are_learned() -> None:
    _, found = trained()
    assert found.cost == pytest.approx(3.0, abs=0.5)
    assert found.losses[0] < 0.35
    assert found.losses[2] < 1.4


@pytest.mark.parametrize(("target", "weight"), [(1.5, 1.0), (1.0, 0.0)])
def test_the_target_is_met(target, weight) -> None:
    model, found = trained(target, flops_weight=weight)
    assert found.cost <= target
    assert all(not alpha.requires_grad for alpha in model.alphas)
    if not weight:
        assert found.closed > 0, "without a weight in the loss, closing has to do it"


def test_the_hinge_closes_gates_itself() -> None:
    _, with_hinge = trained(1.5, flops_weight=50.0, gate_lr=0.2)
    _, without = trained(1.5, flops_weight=0.0, gate_lr=0.2)
    assert with_hinge.closed < without.closed


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match=r"0.5 is less than one network"):
        trained(0.5)
    with pytest.raises(InputError, match="3 batches are fewer than the 10 steps"):
        train_features(digits_net.gated(), batches(3), LOSSES, steps=10, lr=1e-2)
    with pytest.raises(TrainingDiverged, match=r"in step \d+: give a smaller rate"):
        train_features(digits_net.gated(), batches(9), [lambda out, _: out.sum() * torch.nan] * 3, steps=9, lr=1e-2)
