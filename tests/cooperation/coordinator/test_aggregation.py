"""Means over devices: exact where the support is shared."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.cooperation.coordinator.aggregation import clipped, weighted_mean


@given(st.lists(st.tuples(st.integers(1, 10**6), st.lists(st.integers(-99, 99), min_size=3, max_size=3)), min_size=1))
def test_the_mean_is_weighted_per_entry(answers):
    found = weighted_mean([(w, {"x": torch.tensor(v, dtype=torch.float32)}) for w, v in answers])["x"]
    total = sum(w for w, _ in answers)
    for place in range(3):
        assert abs(float(found[place]) - sum(w * v[place] for w, v in answers) / total) < 1e-9


def test_a_name_is_the_mean_of_those_who_hold_it():
    one = (1.0, {"x": torch.ones(2), "y": torch.ones(1)})
    three = (3.0, {"x": 5 * torch.ones(2)})
    found = weighted_mean([one, three])
    assert found["x"].tolist() == [4.0, 4.0]
    assert found["y"].tolist() == [1.0]


def test_the_mean_of_entries_is_the_entry_of_the_dense_mean_and_that_of_factors_is_not():
    torch.manual_seed(0)
    base, entries = torch.randn(6, 5, dtype=torch.float64), (torch.tensor([0, 2, 5]), torch.tensor([1, 1, 4]))
    values = [torch.randn(3, dtype=torch.float32) for _ in range(3)]
    weights = [3.0, 1.0, 2.0]

    def with_entries(value):
        return base.index_put(entries, value.double())

    dense = sum(w * with_entries(v) for w, v in zip(weights, values, strict=True)) / 6.0
    mean = weighted_mean([(w, {"x": v}) for w, v in zip(weights, values, strict=True)])["x"]
    assert torch.allclose(with_entries(mean), dense, rtol=1e-15, atol=1e-15)

    factors = [(torch.randn(6, 2), torch.randn(2, 5)) for _ in range(3)]
    product = sum(w * a @ b for w, (a, b) in zip(weights, factors, strict=True)) / 6.0
    averaged = weighted_mean([(w, {"a": a, "b": b}) for w, (a, b) in zip(weights, factors, strict=True)])
    assert (averaged["a"] @ averaged["b"] - product).norm() > 0.1 * product.norm()


def test_clipping_bounds_the_common_norm():
    gradients = {"x": torch.tensor([3.0]), "y": torch.tensor([4.0])}
    less, norm = clipped(gradients, 1.0)
    assert norm == 5.0
    torch.testing.assert_close(less, {"x": torch.tensor([0.6]), "y": torch.tensor([0.8])})
    assert clipped(gradients, 0.0)[0] is gradients
    assert clipped(gradients, 6.0)[0] is gradients
