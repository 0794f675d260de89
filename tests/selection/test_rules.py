"""Each rule computes its formula."""

import pytest
import torch

from taskedge.selection.rules import RULES
from taskedge.selection.statistics import ABSOLUTE_INPUTS, GRADIENTS, INPUTS, SQUARED_GRADIENTS, LinearStatistics

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -4.0]])


def score(name, weight=WEIGHT, **statistics):
    generator = torch.Generator().manual_seed(3)
    return RULES[name].score(weight, LinearStatistics("x", **statistics), generator)


def test_taskedge_is_magnitude_times_the_norm_of_the_input():
    found = score("taskedge", input_squares=torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64))
    assert torch.equal(found, torch.tensor([[2.0, 6.0, 2.0], [0.0, 9.0, 16.0]]))
    assert RULES["taskedge"].needs == (INPUTS,)


def test_magnitude():
    assert torch.equal(score("magnitude"), WEIGHT.abs())
    assert RULES["magnitude"].needs == ()


def test_magnitude_bottom_ranks_the_other_way_round():
    assert torch.equal(score("magnitude_bottom"), -WEIGHT.abs())
    assert RULES["magnitude_bottom"].needs == ()


def test_mean_activation_is_magnitude_times_the_mean_magnitude_of_the_input():
    found = score("mean_activation", input_absolutes=torch.tensor([4.0, 8.0, 2.0], dtype=torch.float64), tokens=4)
    assert torch.equal(found, torch.tensor([[1.0, 4.0, 0.25], [0.0, 6.0, 2.0]]))
    assert RULES["mean_activation"].needs == (ABSOLUTE_INPUTS,)


def test_activation_is_the_norm_of_the_input_for_every_neuron():
    found = score("activation", input_squares=torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64))
    assert torch.equal(found, torch.tensor([[2.0, 3.0, 4.0], [2.0, 3.0, 4.0]]))
    assert RULES["activation"].needs == (INPUTS,)


def test_gradient_is_its_magnitude():
    assert torch.equal(score("gradient", read_gradient=(-WEIGHT).clone), WEIGHT.abs())
    assert RULES["gradient"].needs == (GRADIENTS,)


@pytest.mark.parametrize("name", ["fisher", "spt"])
def test_fisher_and_spt_rank_by_squared_gradients(name):
    assert torch.equal(score(name, read_squared_gradient=WEIGHT.square), WEIGHT.square())
    assert RULES[name].needs == (SQUARED_GRADIENTS,)


def test_random_follows_its_seed_and_no_data():
    assert torch.equal(score("random"), score("random"))
    assert RULES["random"].needs == ()
    many = score("random", torch.zeros(100, 100))
    assert 0.49 < many.mean() < 0.51
    assert 0 <= many.min() < many.max() < 1


@pytest.mark.parametrize("name", list(RULES))
def test_scores_are_fp32_whatever_the_weight(name):
    weight = WEIGHT.to(torch.bfloat16)
    ones = torch.ones(3, dtype=torch.float64)
    found = score(
        name,
        weight,
        input_squares=ones,
        input_absolutes=ones,
        read_gradient=WEIGHT.clone,
        read_squared_gradient=WEIGHT.square,
    )
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
