"""The cut network has fewer rows and the same answers, bit for bit."""

import digits_net
import pytest
import torch
from torch import nn

from taskedge.training.many.feature_cost import FeatureCost
from taskedge.training.many.feature_cut import CutFeatures, CutLinear
from taskedge.training.many.feature_gates import FeatureGates


def exact(model: FeatureGates) -> FeatureGates:
    """Give weights and mixture few bits, so that every sum is exact in any order."""
    with torch.no_grad():
        for layer in model.layers.values():
            layer.beta.fill_(0.0)
            for tensor in (layer.weight, layer.bias):
                tensor.copy_((tensor * 8).round() / 8)
    return model.double()


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_network_is_the_uncut_one_bit_for_bit(seed) -> None:
    model = exact(digits_net.gated(seed))
    x = (digits_net.inputs() * 8).round().double() / 8
    cut = CutFeatures(model, residual=False)
    for found, whole in zip(cut(x), model(x), strict=True):
        assert torch.equal(found, whole)


@pytest.mark.parametrize("open_", [True, False])
def test_what_no_task_reads_is_gone(open_) -> None:
    model = digits_net.gated()
    digits_net.set_gates(model, open_=open_)
    cut = CutFeatures(model, residual=False)
    assert cut.cost == (3.0 if open_ else 1.0)
    kept = sum(weight.numel() for module in cut.modules() if isinstance(module, CutLinear) for weight in module.weights)
    assert kept == cut.cost * FeatureCost.of_model(model).of_one
    for found, whole in zip(cut(digits_net.inputs()), model(digits_net.inputs()), strict=True):
        assert torch.allclose(found, whole, atol=1e-6)


class Residual(nn.Module):
    """Two linears whose inputs skip them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 10), nn.Linear(10, 10)
        self.norm = nn.LayerNorm(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.one(x).relu())
        return x + self.two(x).relu()


@pytest.mark.parametrize("shared", ["one", "two"])
def test_residuals_keep_what_later_linears_need(shared) -> None:
    torch.manual_seed(0)
    model = FeatureGates(Residual(), digits_net.heads())
    with torch.no_grad():
        for name, layer in model.layers.items():
            layer.weight.normal_()
            layer.alpha.fill_(-1.0 if name == shared else 1.0)
            layer.beta.normal_()
    x = torch.randn(5, 10)
    cut = CutFeatures(model, residual=True)
    for found, whole in zip(cut(x), model(x), strict=True):
        assert torch.allclose(found, whole, atol=1e-5)
    assert cut.cost == 2.0
