"""Means are exact where the support is shared; server optimizers are torch's on one device and resume to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from taskedge.cooperation.coordinator.aggregation import (
    SERVER_OPTIMIZERS,
    FedAvgM,
    ServerOptimizer,
    UncorrectedFedAdam,
    clip_by_norm,
    weighted_mean,
)
from taskedge.errors import InputError


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 10**6), st.lists(st.integers(-99, 99), min_size=3, max_size=3)), min_size=1))
def test_the_mean_is_weighted_per_entry(answers):
    mean = weighted_mean([(w, {"x": torch.tensor(v, dtype=torch.float32)}) for w, v in answers])["x"]
    total = sum(w for w, _ in answers)
    for i in range(3):
        assert abs(float(mean[i]) - sum(w * v[i] for w, v in answers) / total) < 1e-9


def test_a_name_is_the_mean_over_the_answers_that_contain_it():
    both = (1.0, {"x": torch.ones(2), "y": torch.ones(1)})
    only_x = (3.0, {"x": 5 * torch.ones(2)})
    mean = weighted_mean([both, only_x])
    assert mean["x"].tolist() == [4.0, 4.0]
    assert mean["y"].tolist() == [1.0]


def test_the_mean_of_entries_is_the_entry_of_the_dense_mean_and_a_mean_of_factors_is_not():
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
    clipped, norm = clip_by_norm(gradients, 1.0)
    assert norm == 5.0
    torch.testing.assert_close(clipped, {"x": torch.tensor([0.6]), "y": torch.tensor([0.8])})
    assert clip_by_norm(gradients, 0.0)[0] is gradients
    assert clip_by_norm(gradients, 6.0)[0] is gradients


TORCH = {
    "sgd": lambda groups, decay: torch.optim.SGD(groups, weight_decay=decay),
    "fedavgm": lambda groups, decay: torch.optim.SGD(groups, momentum=0.9, weight_decay=decay),
    "fedadam": lambda groups, decay: torch.optim.Adam(groups, weight_decay=decay),
    "fedadamw": lambda groups, decay: torch.optim.AdamW(groups, weight_decay=decay),
}
RATES = {"x": 0.1, "y": 0.02}


def initial_values():
    torch.manual_seed(0)
    return {"x": torch.randn(50), "y": torch.randn(3, 4)}


def gradients_of(step):
    draw = torch.Generator().manual_seed(step)
    gradients = {"x": torch.randn(50, generator=draw), "y": torch.randn(3, 4, generator=draw)}
    if step % 3 == 1:
        del gradients["y"]  # a round without a usable answer for it
    return gradients


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(TORCH))
def test_steps_are_those_of_torch(name, decay):
    """torch in float64 is the oracle; the server optimizer rounds values and state to float32 after every step."""
    values, optimizer = initial_values(), SERVER_OPTIMIZERS[name](decay)
    parameters = {key: torch.nn.Parameter(value.double()) for key, value in initial_values().items()}
    oracle = TORCH[name]([{"params": [p], "lr": RATES[key]} for key, p in parameters.items()], decay)
    for step in range(12):
        gradients = gradients_of(step)
        values |= optimizer.step(values, gradients, RATES.__getitem__)
        for key, parameter in parameters.items():
            parameter.grad = gradients[key].double() if key in gradients else None
        oracle.step()
    for key, parameter in parameters.items():
        torch.testing.assert_close(values[key], parameter.detach().float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(SERVER_OPTIMIZERS))
def test_a_restored_optimizer_continues_to_the_same_bits(name):
    values, uninterrupted = initial_values(), SERVER_OPTIMIZERS[name](0.1)
    for step in range(5):
        values |= uninterrupted.step(values, gradients_of(step), RATES.__getitem__)
    resumed_values, before = initial_values(), SERVER_OPTIMIZERS[name](0.1)
    for step in range(2):
        resumed_values |= before.step(resumed_values, gradients_of(step), RATES.__getitem__)
    after = SERVER_OPTIMIZERS[name](0.1)
    after.load_state_dict(load(save(before.state_dict())))
    for step in range(2, 5):
        resumed_values |= after.step(resumed_values, gradients_of(step), RATES.__getitem__)
    assert all(torch.equal(values[key], resumed_values[key]) for key in values)


def test_state_is_kept_only_for_trained_names():
    optimizer = SERVER_OPTIMIZERS["fedadamw"](0.0)
    optimizer.step(initial_values(), {"y": torch.ones(3, 4)}, RATES.__getitem__)
    assert sorted(optimizer.state_dict()) == ["first/y", "second/y", "steps/y"]


def test_a_step_of_one_towards_a_mean_is_the_mean_to_the_last_bit():
    values, mean = initial_values(), {"x": 100 * torch.randn(50).double()}
    mean["x"] = mean["x"].float().double()
    stepped = SERVER_OPTIMIZERS["sgd"](0.0).step(values, {"x": values["x"].double() - mean["x"]}, lambda _: 1.0)
    assert torch.equal(stepped["x"], mean["x"].float())


@pytest.mark.parametrize("rounds", [1, 12])
def test_momentum_of_zero_is_plain_averaging_to_the_last_bit(rounds):
    plain, values = initial_values(), initial_values()
    averaging, momentum = ServerOptimizer(0.1), FedAvgM(0.1, momentum=0.0)
    for step in range(rounds):
        plain |= averaging.step(plain, gradients_of(step), RATES.__getitem__)
        values |= momentum.step(values, gradients_of(step), RATES.__getitem__)
    assert all(torch.equal(values[key], plain[key]) for key in plain)


def test_uncorrected_adam_with_a_large_tau_is_scaled_momentum():
    tau, beta = 1e8, 0.9
    adam, momentum = UncorrectedFedAdam(0.0, betas=(beta, 0.99), tau=tau), FedAvgM(0.0, momentum=beta)
    values, expected = initial_values(), initial_values()
    for step in range(12):
        values |= adam.step(values, gradients_of(step), lambda name: RATES[name] * tau)
        expected |= momentum.step(expected, gradients_of(step), lambda name: RATES[name] * (1 - beta))
    for key in values:
        torch.testing.assert_close(values[key], expected[key], rtol=1e-5, atol=1e-5)


def test_uncorrected_adam_against_its_formula():
    optimizer, values = UncorrectedFedAdam(), initial_values()
    value = initial_values()["x"].double()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    for step in range(6):
        gradient = gradients_of(step)["x"].double()
        values |= optimizer.step(values, {"x": gradient.float()}, lambda _: 0.1)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        value -= 0.1 * first / (second.sqrt() + 1e-3)
    torch.testing.assert_close(values["x"], value.float(), rtol=2e-6, atol=2e-6)


def test_the_state_of_another_optimizer_is_refused():
    optimizer = SERVER_OPTIMIZERS["fedavgm"](0.0)
    optimizer.step(initial_values(), gradients_of(0), RATES.__getitem__)
    with pytest.raises(InputError, match="written by another optimizer"):
        SERVER_OPTIMIZERS["fedadam"](0.0).load_state_dict(optimizer.state_dict())
