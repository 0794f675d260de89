"""A task survives the plan's state and the wire, and malformed ones are refused."""

import json
from dataclasses import replace

import pytest
import tiny_fleet

from taskedge.cooperation.protocol.message import MessageError
from taskedge.cooperation.protocol.round_task import RoundTask, read_round_task

PLANNED = RoundTask("d0", (0, 2), 1.0, 2.0, 3.0, 4.0, 5.0)
JOB = {
    "blocks": [0, 2],
    "round": 3,
    "seed": 5,
    "batch_size": 4,
    "accumulate": 2,
    "local_steps": 1,
    "optimiser": "sgd",  # codespell:ignore
    "lr": 0.1,
    "head_lr": 0.2,
    "weight_decay": 0.0,
    "idle": [1],
}
"""The wire format of version 2 of the protocol."""


def test_predictions_of_a_planned_task():
    assert PLANNED.seconds == 3.0 + 4.0 + 5.0
    assert PLANNED.deepest == 2


def test_a_planned_task_survives_the_plans_state():
    state = json.loads(json.dumps(PLANNED.plan_state()))
    assert RoundTask.from_plan_state(state) == PLANNED
    assert list(state) == [
        "device", "blocks", "bandwidth_hz", "uplink_bits_per_second", "down_seconds", "compute_seconds", "up_seconds",
    ]  # fmt: skip


def test_a_device_gets_its_part_of_the_task_and_the_recipe():
    task, recipe = tiny_fleet.round_task(round=3)
    task = replace(PLANNED, idle=(1,), seed=task.seed, accumulate=2)
    header = json.loads(json.dumps(task.header(recipe)))
    assert header == JOB
    read, read_recipe = read_round_task(header)
    assert read == RoundTask("", (0, 2), idle=(1,), seed=5, accumulate=2)
    assert read_recipe == recipe


@pytest.mark.parametrize("change", [{"order": "all"}, {"blocks": None}, {"blocks": 3}, {"lr": None}])
def test_a_malformed_task_is_refused(change):
    header = {**JOB, **change}
    if change == {"lr": None}:
        del header["lr"]
    with pytest.raises(MessageError, match="a task that cannot be read"):
        read_round_task(header)
