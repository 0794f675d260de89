"""The server's optimisers are torch's on one device, skip what has no gradient, and go on after a stop."""

import pytest
import torch
from safetensors.torch import load, save

from taskedge.cooperation.coordinator.server_optimizers import OPTIMISERS
from taskedge.errors import InputError

TORCH = {
    "sgd": lambda groups, decay: torch.optim.SGD(groups, weight_decay=decay),
    "fedavgm": lambda groups, decay: torch.optim.SGD(groups, momentum=0.9, weight_decay=decay),
    "fedadam": lambda groups, decay: torch.optim.Adam(groups, weight_decay=decay),
    "fedadamw": lambda groups, decay: torch.optim.AdamW(groups, weight_decay=decay),
}
RATES = {"x": 0.1, "y": 0.02}


def values():
    torch.manual_seed(0)
    return {"x": torch.randn(50), "y": torch.randn(3, 4)}


def gradients(step):
    draw = torch.Generator().manual_seed(step)
    found = {"x": torch.randn(50, generator=draw), "y": torch.randn(3, 4, generator=draw)}
    if step % 3 == 1:
        del found["y"]  # a round in which nobody trained it
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_steps_are_those_of_torch(name, decay):
    """torch in float64 is the oracle; ours rounds values and state to float32 after every step."""
    mine, ours = values(), OPTIMISERS[name](decay)
    theirs = {key: torch.nn.Parameter(value.double()) for key, value in values().items()}
    optimizer = TORCH[name]([{"params": [p], "lr": RATES[key]} for key, p in theirs.items()], decay)
    for step in range(12):
        given = gradients(step)
        mine |= ours.step(mine, given, RATES.__getitem__)
        for key, parameter in theirs.items():
            parameter.grad = given[key].double() if key in given else None
        optimizer.step()
    for key, parameter in theirs.items():
        torch.testing.assert_close(mine[key], parameter.detach().float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_state_goes_through_a_file(name):
    whole, kept = values(), OPTIMISERS[name](0.1)
    for step in range(5):
        whole |= kept.step(whole, gradients(step), RATES.__getitem__)
    parts, first = values(), OPTIMISERS[name](0.1)
    for step in range(2):
        parts |= first.step(parts, gradients(step), RATES.__getitem__)
    second = OPTIMISERS[name](0.1)
    second.load_state_dict(load(save(first.state_dict())))
    for step in range(2, 5):
        parts |= second.step(parts, gradients(step), RATES.__getitem__)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_state_is_kept_for_what_was_trained_only():
    optimiser = OPTIMISERS["fedadamw"](0.0)
    optimiser.step(values(), {"y": torch.ones(3, 4)}, RATES.__getitem__)
    assert sorted(optimiser.state_dict()) == ["first/y", "second/y", "steps/y"]


def test_a_step_of_one_towards_a_mean_is_the_mean_to_the_last_bit():
    now, mean = values(), {"x": 100 * torch.randn(50).double()}
    mean["x"] = mean["x"].float().double()
    found = OPTIMISERS["sgd"](0.0).step(now, {"x": now["x"].double() - mean["x"]}, lambda _: 1.0)
    assert torch.equal(found["x"], mean["x"].float())


def test_the_state_of_another_optimiser_is_refused():
    optimiser = OPTIMISERS["fedavgm"](0.0)
    optimiser.step(values(), gradients(0), RATES.__getitem__)
    with pytest.raises(InputError, match="written by another optimiser"):
        OPTIMISERS["fedadam"](0.0).load_state_dict(optimiser.state_dict())
