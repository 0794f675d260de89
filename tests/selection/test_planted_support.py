"""A support planted in synthetic data: rules that divide by the input find it, others choose among the largest inputs.

Inputs with scales over two decades, a target that differs from the weight in one entry of each neuron, with the same
effect on every neuron, and a squared loss. That favors rules without a scale; real tasks need not be like this.
"""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskedge.selection.select import select

INPUTS, NEURONS, ROWS, BATCHES, SEEDS = 128, 64, 1024, 16, 3
ALL_INPUTS = {"no mean": (0.0, 0.0), "mean 2": (2.0, 0.0), "mean 2, correlated 0.8": (2.0, 0.8)}


class Regression(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.linear = nn.Linear(INPUTS, NEURONS, bias=False)
        self.linear.weight.data = weight

    def forward(self, x, labels):
        return SimpleNamespace(loss=(self.linear(x) - labels).square().mean())


def problem(seed, mean, correlation):
    """Return (model, batches, the planted column of each neuron)."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (2 * torch.rand(INPUTS, generator=generator) - 1)
    weight = torch.randn(NEURONS, INPUTS, generator=generator) / INPUTS**0.5
    planted = torch.randint(INPUTS, (NEURONS,), generator=generator)
    difference = torch.zeros(NEURONS, INPUTS)
    signs = torch.randint(2, (NEURONS,), generator=generator) * 2 - 1
    difference[torch.arange(NEURONS), planted] = signs / scale[planted]
    z = torch.randn(ROWS, INPUTS, generator=generator) * (1 - correlation) ** 0.5
    z += torch.randn(ROWS, 1, generator=generator) * correlation**0.5
    x = (z + mean) * scale
    pairs = zip(x.chunk(BATCHES), (x @ (weight + difference).t()).chunk(BATCHES), strict=True)
    return Regression(weight), [{"x": x, "labels": labels} for x, labels in pairs], planted


@cache
def outcome(rule, inputs):
    """Return (share of the planted entries that are found, distinct columns), means over the seeds."""
    found = columns = 0.0
    for seed in range(SEEDS):
        model, batches, planted = problem(seed, *ALL_INPUTS[inputs])
        support = select(model, batches, rule=rule, per_neuron=1, linears=["linear"]).linears["linear"]
        found += float((support.columns == planted).float().mean()) / SEEDS
        columns += len(support.distinct_columns) / SEEDS
    return found, columns


@pytest.mark.parametrize("inputs", ALL_INPUTS)
def test_pursuit_finds_every_planted_entry(inputs):
    assert outcome("pursuit", inputs)[0] == pytest.approx(1.0)


def test_signal_over_noise_finds_all_only_if_inputs_have_no_mean():
    assert outcome("pursuit_t", "no mean")[0] == pytest.approx(1.0)
    assert outcome("pursuit_t", "mean 2")[0] < 0.5


@pytest.mark.parametrize("rule", ["gradient", "snip", "fisher", "ratio", "first_batch"])
def test_other_gradient_rules_find_some_without_a_mean_and_next_to_none_with_one(rule):
    assert 0.1 < outcome(rule, "no mean")[0] < 0.75
    for inputs in ("mean 2", "mean 2, correlated 0.8"):
        assert outcome(rule, inputs)[0] < 0.1


@pytest.mark.parametrize("rule", ["taskedge", "magnitude", "principal", "fisher_bottom", "random"])
@pytest.mark.parametrize("inputs", ALL_INPUTS)
def test_rules_that_do_not_look_at_the_error_find_none(rule, inputs):
    assert outcome(rule, inputs)[0] < 0.1


def test_the_order_of_the_gradient_rules():
    found = [outcome(rule, "no mean")[0] for rule in ("pursuit", "gradient", "snip", "fisher", "ratio", "random")]
    assert found == sorted(found, reverse=True)


def test_gradients_of_inputs_with_a_mean_choose_few_columns_and_pursuit_many():
    assert outcome("gradient", "mean 2")[1] < 10 < 40 < outcome("pursuit", "mean 2")[1]
