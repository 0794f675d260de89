"""Gates are exactly 0 or 1, and have the gradient of the sigmoid."""

from __future__ import annotations

import torch

from taskedge.training.many.row_gates import START, hard_gates, value_with_gradient


def test_a_gate_is_exactly_zero_or_one() -> None:
    logits = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, START, 17.0])
    assert hard_gates(logits).tolist() == [0, 0, 0, 1, 1, 1]


def test_the_gradient_is_that_of_the_sigmoid() -> None:
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, dtype=torch.float64)
    (hard_gates(logits) * upstream).sum().backward()
    soft = torch.sigmoid(logits.detach())
    assert logits.grad is not None
    assert torch.allclose(logits.grad, upstream * soft * (1 - soft), atol=1e-15)


def test_a_value_with_the_gradient_of_another_number() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    result = value_with_gradient(torch.tensor(5.0), x * x)
    result.backward()
    assert float(result.detach()) == 5.0
    assert float(x.grad) == 6.0  # type: ignore[arg-type]
