"""Each rule's score against its formula written out."""

import pytest
import torch

from taskedge.selection.rules import RULES
from taskedge.selection.statistics import GRADIENTS, INPUTS, LinearStatistics

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


def test_gradient_is_its_magnitude():
    assert torch.equal(score("gradient", gradient=-WEIGHT), WEIGHT.abs())
    assert RULES["gradient"].needs == (GRADIENTS,)


def test_random_follows_its_seed_and_no_data():
    assert torch.equal(score("random"), score("random"))
    assert RULES["random"].needs == ()
    many = score("random", torch.zeros(100, 100))
    assert 0.49 < many.mean() < 0.51
    assert 0 <= many.min() < many.max() < 1


@pytest.mark.parametrize("name", ["taskedge", "magnitude", "gradient", "random"])
def test_scores_are_fp32_whatever_the_weight(name):
    weight = WEIGHT.to(torch.bfloat16)
    found = score(name, weight, input_squares=torch.ones(3, dtype=torch.float64), gradient=WEIGHT)
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
