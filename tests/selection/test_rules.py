"""Each rule computes its formula."""

import pytest
import torch

from taskedge.errors import UnknownName
from taskedge.selection.rules import RULES
from taskedge.selection.statistics import (
    ABSOLUTE_INPUTS,
    CHANGES,
    FIRST_GRADIENTS,
    GRADIENTS,
    INPUTS,
    SQUARED_GRADIENTS,
    LinearStatistics,
)

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


def squares_of(norms):
    return torch.tensor(norms, dtype=torch.float64).square()


def test_pursuit_is_the_gradient_over_the_input_in_units_of_the_linear_and_0_for_dead_inputs():
    found = score("pursuit", read_gradient=(-WEIGHT).clone, input_squares=squares_of([3.0, 4.0, 0.0]))
    rms = (25 / 3) ** 0.5  # of three inputs
    assert torch.allclose(found, torch.tensor([[1 / 3, 2 / 4, 0.0], [0.0, 3 / 4, 0.0]]) * rms, rtol=1e-6)
    assert RULES["pursuit"].needs == (GRADIENTS, INPUTS)


def test_pursuit_does_not_depend_on_the_scale_of_the_inputs():
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    plain = score("pursuit", read_gradient=WEIGHT.clone, input_squares=squares_of([1.0, 2.0, 3.0]))
    scaled = score(
        "pursuit",
        read_gradient=lambda: (WEIGHT.double() * scale).float(),
        input_squares=squares_of([1.0, 2.0, 3.0]) * scale.square(),
    )
    assert torch.allclose(scaled / scaled.sum(), plain / plain.sum(), rtol=1e-5)


def test_pursuit_t_is_signal_over_noise_and_0_without_gradients():
    batches = torch.tensor([[[1.0, 2.0, 0.0]], [[1.0, -2.0, 0.0]], [[1.0, 3.0, 0.0]]])
    found = score(
        "pursuit_t",
        read_gradient=lambda: batches.sum(0),
        read_squared_gradient=lambda: batches.square().sum(0),
    )
    assert torch.allclose(found, torch.tensor([[3**0.5, 3 / 17**0.5, 0.0]]), rtol=1e-6)
    assert RULES["pursuit_t"].needs == (GRADIENTS, SQUARED_GRADIENTS)


def test_snip_is_the_product_of_the_sum():
    gradient = torch.tensor([[1.0, -1.0, 2.0], [5.0, 0.0, -0.5]])
    assert torch.equal(score("snip", read_gradient=gradient.clone), (gradient * WEIGHT).abs())
    assert RULES["snip"].needs == (GRADIENTS,)


def test_ratio_is_the_gradient_over_the_weight():
    gradient = torch.tensor([[1.0, -1.0, 2.0], [1e-8, 0.0, -0.5]])
    expected = torch.tensor([[1.0, 0.5, 4.0], [1.0, 0.0, 0.125]])
    assert torch.allclose(score("ratio", read_gradient=gradient.clone), expected, rtol=1e-6)
    assert RULES["ratio"].needs == (GRADIENTS,)


def test_fisher_bottom_ranks_the_other_way_round_and_inputs_without_gradients_last():
    squares = torch.tensor([[1.0, 0.0, 0.0], [4.0, 2.0, 0.0]])
    found = score("fisher_bottom", read_squared_gradient=squares.clone)
    assert torch.equal(found, torch.tensor([[-1.0, 0.0, -torch.inf], [-4.0, -2.0, -torch.inf]]))
    assert RULES["fisher_bottom"].needs == (SQUARED_GRADIENTS,)


def test_first_batch_is_the_magnitude_of_its_gradient():
    assert torch.equal(score("first_batch", read_first_gradient=(-WEIGHT).clone), WEIGHT.abs())
    assert RULES["first_batch"].needs == (FIRST_GRADIENTS,)


def test_change_is_its_magnitude():
    assert torch.equal(score("change", read_change=(-WEIGHT).clone), WEIGHT.abs())
    assert (RULES["change"].needs, RULES["change"].needs_dense_run) == ((CHANGES,), True)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_principal_is_the_part_with_the_largest_singular_values(shape, rank):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    expected = ((u[:, :rank] * s[:rank]) @ v[:rank]).abs().float()
    assert torch.allclose(score(f"principal:{rank}", weight), expected, atol=1e-6)
    assert RULES[f"principal:{rank}"].name == f"principal:{rank}"


def test_principal_is_magnitude_from_the_full_rank_on_and_one_column_a_neuron_at_rank_1():
    assert torch.equal(score("principal", WEIGHT), WEIGHT.abs())
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    assert len(score("principal:1", weight).argmax(1).unique()) == 1
    wide = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(score("principal", wide), score("principal:32", wide))
    assert not torch.equal(score("principal", wide), wide.abs())


@pytest.mark.parametrize("name", ["principal:0", "principal:", "principal:x", "principal:-1", "principl:4"])
def test_a_rank_is_a_whole_number_above_0(name):
    with pytest.raises(UnknownName, match=r"unknown rule .*principal:R"):
        RULES[name]


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
        read_first_gradient=WEIGHT.clone,
        read_change=WEIGHT.clone,
    )
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
