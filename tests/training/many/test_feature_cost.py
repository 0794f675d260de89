"""Costs of gates against counting, the hinge against its definition, and needed rows against brute force."""

import digits_net
import pytest
import torch

from taskedge.training.many.feature_cost import FeatureCost, needed_rows
from taskedge.training.many.feature_gates import FeatureGates

COST = FeatureCost((12, 10), (10, 10))


def logits(seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 10, generator=draw).requires_grad_() for _ in range(2)]


def test_the_cost_is_a_count_of_products() -> None:
    model = digits_net.gated()
    assert FeatureCost.of_model(model) == COST
    gates = [alpha > 0 for alpha in model.alphas]
    total = 0
    for width, open_ in zip((12, 10), gates, strict=True):
        for channel in range(10):
            total += width * (int(open_[:, channel].sum()) + (not bool(open_[:, channel].all())))
    assert COST.products(gates) == pytest.approx(total / 220)


@pytest.mark.parametrize(("open_", "cost"), [(False, 1.0), (True, 3.0)])
def test_closed_gates_cost_one_net_and_open_ones_as_many_as_tasks(open_, cost) -> None:
    gates = [torch.full((3, 10), open_)] * 2
    assert COST.products(gates) == cost
    assert float(COST.soft([torch.full((3, 10), 40.0 if open_ else -40.0)] * 2)) == pytest.approx(cost)


def test_the_soft_cost_is_the_mean_over_drawn_gates() -> None:
    made = [each.detach() for each in logits()]
    draw = torch.Generator().manual_seed(1)
    costs = [
        COST.products([torch.rand(each.shape, generator=draw) < each.sigmoid() for each in made]) for _ in range(2000)
    ]
    assert float(COST.soft(made)) == pytest.approx(sum(costs) / len(costs), abs=0.02)


def test_the_hinge_is_zero_at_and_below_the_target() -> None:
    made = logits()
    cost = COST.products([each > 0 for each in made])
    for target in (cost, cost + 0.5):
        hinge = COST.hinge(made, target)
        assert float(hinge.detach()) == 0
        hinge.backward()
    assert all(not each.grad.any() for each in made)
    hinge = COST.hinge(made, cost - 0.25)
    assert float(hinge.detach()) == pytest.approx(0.25, abs=1e-6)
    hinge.backward()
    assert all((each.grad > 0).all() for each in made), "closing a gate never costs more"


@pytest.mark.parametrize("target", [1.0, 1.2, 1.7, 2.5])
def test_closing_meets_the_target_with_the_fewest_gates(target) -> None:
    made = [each.detach() for each in logits(4)]
    gates, closed = COST.closed_to(made, target)
    assert COST.products(gates) <= target
    before = [each > 0 for each in made]
    assert closed == sum(int(a.sum()) - int(b.sum()) for a, b in zip(before, gates, strict=True))
    if closed:
        last = max(float(each[a & ~b].max()) for each, a, b in zip(made, before, gates, strict=True) if (a & ~b).any())
        one_more = [b | (each == last) for each, b in zip(made, gates, strict=True)]
        assert COST.products(one_more) > target


@pytest.mark.parametrize("seed", range(8))
def test_needed_rows_of_a_chain_are_those_whose_change_is_seen(seed) -> None:
    """A row is needed if other weights there change some answer; gates are drawn so that whole layers share."""
    model, x = digits_net.gated(seed), digits_net.inputs()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for alpha in model.alphas:
            kind = torch.randint(3, (3, 1), generator=draw)
            alpha.copy_(torch.where(kind == 0, -1.0, torch.where(kind == 1, 1.0, alpha)))
    _without_relu(model)
    needed = needed_rows([alpha > 0 for alpha in model.alphas], residual=False)
    whole = model(x)
    for index, layer in enumerate(model.layers.values()):
        for stream in range(4):
            for row in range(digits_net.WIDTH):
                expected = bool(needed.shared[index][row] if stream == 0 else needed.own[index][stream - 1, row])
                kept = layer.weight.data[stream, row].clone()
                layer.weight.data[stream, row] += 1
                seen = any(not torch.equal(a, b) for a, b in zip(model(x), whole, strict=True))
                layer.weight.data[stream, row] = kept
                assert seen == expected, (index, stream, row)


def test_with_residuals_earlier_linears_give_what_later_ones_need() -> None:
    gates = [torch.tensor([[True, False]] * 2), torch.tensor([[True, True]] * 2), torch.tensor([[False, False]] * 2)]
    needed = needed_rows(gates, residual=True)
    assert needed.mixed == (True, True, False)
    assert all(bool(read.all()) for read in needed.read)
    chain = needed_rows(gates, residual=False)
    assert chain.mixed == (False, True, False)
    assert not chain.read[1].logical_not().any(), "the mixture of the second linear reads both tasks"
    assert chain.cost(FeatureCost((2, 2, 2), (2, 2, 2))) <= needed.cost(FeatureCost((2, 2, 2), (2, 2, 2)))


def _without_relu(model: FeatureGates) -> None:
    """A ReLU could hide a change."""
    for index in (1, 3):
        model.trunk[index] = torch.nn.Tanh()
