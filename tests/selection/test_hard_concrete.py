"""Hard concrete gates: probabilities against samples, slopes against finite differences."""

from __future__ import annotations

import pytest
import torch

from taskedge.selection.hard_concrete import UNIFORM_MARGIN, HardConcrete, uniform_like

INTERVALS = [HardConcrete(), HardConcrete(-0.1, 1.1)]
ALPHAS = (-3.0, -1.0, 0.0, 0.5, 2.0, 5.0)


@pytest.mark.parametrize("gate", INTERVALS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_share_of_open_gates_is_the_probability(gate, alpha):
    samples = 100_000
    alphas = torch.full((samples,), alpha, dtype=torch.float64)
    z = gate.gate(alphas, uniform_like(alphas, torch.Generator().manual_seed(0)))
    expected = float(gate.nonzero_probability(alphas[:1]))
    spread = (expected * (1 - expected) / samples) ** 0.5
    assert abs(float((z > 0).double().mean()) - expected) < 4 * spread + UNIFORM_MARGIN
    assert abs(float((z == 0).double().mean()) - float(torch.sigmoid(torch.tensor(gate.shift - alpha)))) < (
        4 * spread + UNIFORM_MARGIN
    )
    assert bool(((z >= 0) & (z <= 1)).all())


def test_a_gate_starts_closed_with_the_probability_of_the_paper():
    assert float(1 - HardConcrete().nonzero_probability(torch.tensor(5.0))) == pytest.approx(0.0067, abs=1e-4)


@pytest.mark.parametrize("gate", INTERVALS)
def test_slopes_are_finite_differences_at_fixed_u(gate):
    generator = torch.Generator().manual_seed(1)
    alpha = torch.randn(2000, dtype=torch.float64, generator=generator) * 3
    u = uniform_like(alpha, generator)
    z, slope = gate.gate_and_slope(alpha, u)
    assert torch.equal(z, gate.gate(alpha, u))
    step = 1e-6
    difference = (gate.gate(alpha + step, u) - gate.gate(alpha - step, u)) / (2 * step)
    smooth = (gate.gate(alpha + step, u) > 0) == (gate.gate(alpha - step, u) > 0)
    smooth &= (gate.gate(alpha + step, u) < 1) == (gate.gate(alpha - step, u) < 1)
    assert smooth.double().mean() > 0.99
    torch.testing.assert_close(slope[smooth], difference[smooth], atol=1e-8, rtol=0)
    assert bool((slope[(z == 0) | (z == 1)] == 0).all())
    numeric = (gate.nonzero_probability(alpha + step) - gate.nonzero_probability(alpha - step)) / (2 * step)
    torch.testing.assert_close(gate.nonzero_slope(alpha), numeric, atol=1e-8, rtol=0)


def test_a_large_alpha_is_an_open_gate_whatever_u():
    alpha = torch.full((10_000,), 30.0)
    z, slope = HardConcrete().gate_and_slope(alpha, uniform_like(alpha, torch.Generator().manual_seed(0)))
    assert bool((z == 1).all())
    assert not bool(slope.any())
