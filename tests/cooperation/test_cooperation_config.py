"""Settings of a run: every fault at once, and the schedule of the learning rate."""

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.errors import InputError


def test_every_fault_is_named():
    with pytest.raises(InputError) as error:
        CooperateSettings(
            mode="fedagv", rounds=0, lr=0.0, active_share=2, warmup=1.0, optimiser="adam", drift=-1, solver="jiont"
        )
    for part in (
        "did you mean 'fedavg'",
        "rounds=0",
        "lr=0.0",
        "active_share=2",
        "warmup=1.0",
        "'adam'",
        "drift=-1",
        "did you mean 'joint'",
    ):
        assert part in str(error.value)


def test_the_servers_optimiser_follows_what_devices_send():
    assert CooperateSettings().server_optimiser == "fedadamw"
    assert CooperateSettings(local_steps=4).server_optimiser == "sgd"
    assert CooperateSettings(local_steps=4, optimiser="fedadam").server_optimiser == "fedadam"


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.25])
def test_the_rate_is_that_of_a_central_run(warmup):
    """The Trainer's linear schedule: it starts at 0, which a round would waste, so ours is one step ahead."""
    rounds = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = int(warmup * rounds)
    schedule = get_linear_schedule_with_warmup(optimizer, rise, rounds)
    theirs = []
    for _ in range(rounds + 1):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    settings = CooperateSettings(rounds=rounds, warmup=warmup)
    ours = [settings.rate(number) for number in range(1, rounds + 1)]
    assert ours[:rise] == pytest.approx(theirs[1 : rise + 1])
    assert ours[rise:] == pytest.approx(theirs[rise:rounds])
    assert all(rate > 0 for rate in ours)
