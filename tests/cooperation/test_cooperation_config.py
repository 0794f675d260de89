"""Settings of a cooperative run: every fault at once, names of registries, and the schedule of the learning rate."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from transformers import get_linear_schedule_with_warmup

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.aggregation import SERVER_OPTIMIZERS
from taskedge.cooperation.protocol.quantization import UPLOAD_DTYPES
from taskedge.errors import InputError
from taskedge.training.trainer_config import TrainerConfig


def test_every_fault_is_named():
    with pytest.raises(InputError) as error:
        CooperationConfig(
            mode="fedagv",
            rounds=0,
            lr=0.0,
            active_share=2,
            warmup=1.0,
            server_optimizer="adam",
            replan_drift=-1,
            rotation_slack=-0.1,
            deadline_factor=1.0,
            solver="exact-",
            round=3,
        )
    for part in (
        "did you mean 'fedavg'",
        "rounds=0",
        "lr=0.0",
        "active_share=2",
        "warmup=1.0",
        "'adam'",
        "replan_drift=-1",
        "rotation_slack=-0.1",
        "deadline_factor=1.0",
        "did you mean 'exact'",
        "round: unknown setting; did you mean 'rounds'?",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allocation": "2:4", "max_rows": 3}, "leave out the maximum number of rows"),
        ({"allocation": "2:4", "budget": "1%"}, "is itself the budget: leave out the budget"),
        ({"allocation": "block", "per_neuron": 2}, "trains few neurons"),
    ],
)
def test_settings_that_exclude_one_another_are_refused_before_any_device_is_asked(given, words):
    with pytest.raises(InputError, match=words):
        CooperationConfig(**given)


def test_a_budget_that_another_setting_replaces_is_not_passed_on():
    block = {"allocation": "block", "max_rows": 3, "max_columns": 5}
    assert CooperationConfig(**block).select_kwargs()["budget"] is None
    assert CooperationConfig(**block, budget="1%").select_kwargs()["budget"] == "1%"
    assert CooperationConfig(allocation="2:4").select_kwargs()["budget"] is None
    assert CooperationConfig(per_neuron=2).select_kwargs()["budget"] is None
    assert CooperationConfig(max_rows=3).select_kwargs()["budget"] == "0.1%"


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        CooperationConfig().rounds = 3


@pytest.mark.parametrize("name", ["wait_seconds", "norm_factor", "replan_drift"])
def test_a_limit_can_be_infinite_but_is_a_number(name):
    assert getattr(CooperationConfig(**{name: float("inf")}), name) == float("inf")
    with pytest.raises(InputError, match=name):
        CooperationConfig(**{name: float("nan")})


def test_choices_are_what_the_registries_have():
    def choices(name):
        annotation = CooperationConfig.model_fields[name].annotation
        literals = [get_args(part) for part in get_args(annotation) if get_args(part)] or [get_args(annotation)]
        return set(literals[0])

    assert choices("server_optimizer") == set(SERVER_OPTIMIZERS)
    assert choices("upload") == set(UPLOAD_DTYPES)


def test_defaults_are_those_of_a_run_on_one_machine():
    config, central = CooperationConfig(), TrainerConfig()
    for name in ("lr", "batch_size", "weight_decay", "warmup", "clip"):
        assert getattr(config, name) == getattr(central, name)


def test_the_server_optimizer_depends_on_what_devices_send():
    assert CooperationConfig().resolved_server_optimizer == "fedadamw"
    assert CooperationConfig(local_steps=4).resolved_server_optimizer == "sgd"
    assert CooperationConfig(local_steps=4, server_optimizer="fedadam").resolved_server_optimizer == "fedadam"


def test_every_former_name_has_a_present_one():
    assert set(CooperationConfig.old_names.values()) <= CooperationConfig.model_fields.keys()
    assert not set(CooperationConfig.old_names) & CooperationConfig.model_fields.keys()


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.25])
def test_the_learning_rate_is_that_of_a_central_run(warmup):
    """The Trainer's linear schedule starts at 0, which would waste a round, so this one is a step ahead of it."""
    rounds = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup_rounds = int(warmup * rounds)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_rounds, rounds)
    expected = []
    for _ in range(rounds + 1):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    config = CooperationConfig(rounds=rounds, warmup=warmup)
    factors = [config.lr_factor(number) for number in range(1, rounds + 1)]
    assert factors[:warmup_rounds] == pytest.approx(expected[1 : warmup_rounds + 1])
    assert factors[warmup_rounds:] == pytest.approx(expected[warmup_rounds:rounds])
    assert all(factor > 0 for factor in factors)


def test_a_former_name_of_a_solver_is_said_and_translated():
    with pytest.warns(FutureWarning, match="the solver 'joint' is now 'exact'"):
        assert CooperationConfig(solver="joint").solver == "exact"
