"""A layer changes its class and back, and stays the same object."""

import copy

import torch
from torch import nn

from taskedge.backbone.class_swap import restore_class, swap_class


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * super().forward(x)


class Negating(nn.Module):
    def forward(self, x):
        return -super().forward(x)


def test_the_object_stays_with_its_hooks_and_parameters():
    layer, x, calls = nn.Linear(3, 2), torch.ones(3), []
    weight, plain = layer.weight, layer(x)
    layer.register_forward_hook(lambda *_: calls.append(1))
    swap_class(layer, Doubling, "Doubled")
    assert type(layer).__name__ == "DoubledLinear"
    assert isinstance(layer, nn.Linear)
    assert layer.weight is weight
    assert torch.equal(layer(x), 2 * plain)
    restore_class(layer)
    assert type(layer) is nn.Linear
    assert torch.equal(layer(x), plain)
    assert len(calls) == 2


def test_layers_of_one_class_get_one_class():
    first, second, other = nn.Linear(1, 1), nn.Linear(2, 2), nn.Embedding(2, 2)
    for layer in (first, second, other):
        swap_class(layer, Doubling, "Doubled")
    assert type(first) is type(second)
    assert type(first) is not type(other)


def test_swaps_nest_and_copies_keep_their_class():
    layer, x = nn.Linear(3, 2), torch.ones(3)
    plain = layer(x)
    swap_class(layer, Doubling, "Doubled")
    swap_class(layer, Negating, "Negated")
    assert torch.equal(copy.deepcopy(layer)(x), -2 * plain)
    restore_class(layer)
    assert type(layer).__name__ == "DoubledLinear"
    restore_class(layer)
    assert type(layer) is nn.Linear
