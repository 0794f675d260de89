"""Gated features: closed gates are one net with heads, open gates are nets apart, and gates have their gradient."""

import copy

import digits_net
import pytest
import torch
from torch import nn

from taskedge.errors import InputError
from taskedge.training.many.feature_gates import FeatureGates, FeatureLinear, mixed


def test_closed_gates_are_heads_on_one_net() -> None:
    model, x = digits_net.gated(), digits_net.inputs()
    digits_net.set_gates(model, open_=False)
    features = digits_net.trunk()(x)
    for found, head in zip(model(x), model.heads, strict=True):
        assert torch.allclose(found, head(features), atol=1e-6)


def test_open_gates_are_nets_apart() -> None:
    model, x = digits_net.gated(), digits_net.inputs()
    digits_net.set_gates(model, open_=True)
    for task, (found, head) in enumerate(zip(model(x), model.heads, strict=True)):
        assert torch.allclose(found, head(digits_net.trunk(task + 1)(x)), atol=1e-6)


def test_equal_weights_are_one_net_whatever_the_gates() -> None:
    model = FeatureGates(digits_net.trunk(), digits_net.heads())
    with torch.no_grad():
        for layer in model.layers.values():
            layer.alpha.normal_()
            layer.beta.normal_()
    x = digits_net.inputs()
    for found, head in zip(model(x), model.heads, strict=True):
        assert torch.allclose(found, head(digits_net.trunk()(x)), atol=1e-5)


def test_every_channel_is_what_the_equations_say() -> None:
    """Written out a channel at a time, from one linear."""
    layer = digits_net.gated().layers["0"]
    streams = [digits_net.inputs(seed=seed) for seed in range(4)]
    found = layer(torch.cat(streams)).chunk(4)
    own = [x @ w.T + b for x, w, b in zip(streams, layer.weight, layer.bias, strict=True)]
    shares = layer.beta.exp() / layer.beta.exp().sum(0)
    for channel in range(digits_net.WIDTH):
        read = [own[1 + t] if layer.alpha[t, channel] > 0 else own[0] for t in range(3)]
        for task in range(3):
            assert torch.allclose(found[1 + task][:, channel], read[task][:, channel], atol=1e-6)
        mixture = sum(shares[t, channel] * read[t][:, channel] for t in range(3))
        assert torch.allclose(found[0][:, channel], mixture, atol=1e-6)


def test_the_gradient_of_a_gate() -> None:
    """The slope of the sigmoid, times the product of what comes from above with own less shared features.

    What comes from above is the gradient of the task's features, and of the mixture.
    """
    layer = digits_net.gated().layers["0"]
    x = torch.cat([digits_net.inputs(seed=seed) for seed in range(4)])
    upstream = torch.randn(x.shape[0], digits_net.WIDTH, generator=torch.Generator().manual_seed(5))
    (layer(x) * upstream).sum().backward()
    own = [layer.features(stream, part) for stream, part in enumerate(x.chunk(4))]
    parts, shares = upstream.chunk(4), layer.beta.softmax(0)
    for task in range(3):
        slope = layer.alpha[task].sigmoid() * (1 - layer.alpha[task].sigmoid())
        to_read = parts[1 + task] + shares[task] * parts[0]
        expected = slope * (to_read * (own[1 + task] - own[0])).sum(0)
        assert torch.allclose(layer.alpha.grad[task], expected, rtol=1e-4, atol=1e-5)


def test_frozen_gates_have_no_gradient() -> None:
    model = digits_net.gated()
    before = copy.deepcopy(model)(digits_net.inputs())
    model.freeze_gates()
    found = model(digits_net.inputs())
    assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))
    sum(out.sum() for out in found).backward()
    for layer in model.layers.values():
        assert layer.alpha.grad is None
    assert model.layers["0"].beta.grad is not None, "the mixture of the first linear feeds the second"


def test_a_mixture_of_equal_features_is_the_feature() -> None:
    x = digits_net.inputs()
    assert torch.allclose(mixed([x, x, x], torch.randn(3, digits_net.INPUTS)), x, atol=1e-6)


def test_other_modules_stay_and_the_trunk_is_not_changed() -> None:
    plain = digits_net.trunk()
    model = FeatureGates(plain, digits_net.heads(), ["2"])
    assert isinstance(plain[2], nn.Linear)
    assert isinstance(model.trunk[2], FeatureLinear)
    assert isinstance(model.trunk[0], nn.Linear)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FeatureGates(digits_net.trunk(), digits_net.heads()[:1]), "1 tasks share nothing"),
        (lambda: FeatureGates(digits_net.trunk(), digits_net.heads(), ["1"]), "'1' is no linear of Sequential"),
        (lambda: FeatureGates(nn.ReLU(), digits_net.heads()), "has no linears that tasks could share"),
    ],
)
def test_what_cannot_be_gated_is_refused(make, told) -> None:
    with pytest.raises(InputError, match=told):
        make()
