"""A plan file is followed while its devices are ready and can hold their blocks, and rounds are planned otherwise."""

import json

import pytest
import tiny_fleet
from plan_files import plan_of
from shapes import device, fleet, table

from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.scheduling.fixed_plan import check_plan_blocks, plan_digest
from taskedge.cooperation.scheduling.round_planner import RoundPlanner
from taskedge.errors import InputError

LAYERS = table().layers
PAYLOAD = (50, 50, 50)
FILE = plan_of({"a": [1, 3], "c": [2]}, LAYERS, idle=["b"])


def infos(*names, memory_bytes=1e9):
    return {name: DeviceInfo("base", (), 20, memory_bytes, None, "", None) for name in names}


def planner(plan=FILE, fleet=None, **changes):
    config = tiny_fleet.settings(**{"rotation_slack": 0.5, "traversal_slack": 0.5, **changes})
    return RoundPlanner(table(), 10, fleet, config, plan)


def assignment(plan):
    return {task.device: task.blocks for task in plan.tasks}


def test_the_plan_of_the_file_is_followed_without_rotation_and_added_blocks():
    made = planner()
    plan, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
    assert reason == "first round; by the plan file"
    for _ in range(4):
        assert assignment(plan) == {"a": (0, 1, 3), "c": (0, 2)}
        plan, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
        assert reason == ""


def test_costs_are_those_of_the_run():
    """Bandwidth comes from the file, everything else from the fleet and the run's own support."""
    rows = [device(name) for name in "abc"]
    made = planner(fleet=fleet(*rows), calibrate=True)
    plan, _ = made.plan(infos("a", "b", "c"), PAYLOAD)
    task = plan.tasks[0]
    assert task.bandwidth_hz == 1e5
    bits = 8 * 4 * (50 + 50 + 10)  # float32 values of blocks 1 and 3, and of the head
    assert task.up_seconds == pytest.approx(bits / task.uplink_bits_per_second)
    made.calibration.observe("a", (3 * task.compute_seconds, task.compute_seconds), (0.0, 0.0))
    replanned, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
    assert reason == "other pace: a; by the plan file"
    assert replanned.tasks[0].compute_seconds == pytest.approx(3 * task.compute_seconds)
    assert assignment(replanned) == assignment(plan)


def test_without_a_device_rounds_are_planned_until_it_is_back():
    made = planner()
    plan, reason = made.plan(infos("a", "b"), PAYLOAD)
    assert reason == "first round; not by the plan file (not ready: c)"
    assert {block for blocks in assignment(plan).values() for block in blocks} == {0, 1, 2, 3}
    plan, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
    assert reason == "joined: c; by the plan file"
    assert assignment(plan) == {"a": (0, 1, 3), "c": (0, 2)}
    _, reason = made.plan(infos("c"), PAYLOAD)
    assert reason == "left: a, b; not by the plan file (not ready: a)"


def test_a_device_that_cannot_hold_its_blocks_is_named():
    made = planner()
    devices = infos("b", "c", "d") | infos("a", memory_bytes=1.0)
    _, reason = made.plan(devices, PAYLOAD)
    assert reason.startswith("first round; not by the plan file (a cannot hold its blocks: ")


def test_idle_blocks_are_left_out_and_so_are_devices_without_others():
    made = planner()
    plan, _ = made.plan(infos("a", "b", "c"), (0, 0, 50))
    assert assignment(plan) == {"a": (0, 3)}
    assert {task.device: task.blocks for task in plan.unfrozen_tasks} == {"a": (0, 1, 3), "c": (0, 2)}


def test_the_head_goes_where_the_settings_say():
    plan, _ = planner(head="first").plan(infos("a", "b", "c"), PAYLOAD)
    assert assignment(plan) == {"a": (0, 1, 3), "c": (2,)}


def test_copies_of_a_block_are_kept():
    made = planner(plan_of({"a": [1, 2, 3], "b": [1, 2, 3]}, LAYERS))
    plan, _ = made.plan(infos("a", "b"), PAYLOAD)
    assert assignment(plan) == {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}


def test_a_resumed_planner_follows_on():
    first, second = planner(), planner()
    first.plan(infos("a", "b", "c"), PAYLOAD)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    plan, reason = second.plan(infos("a", "b", "c"), PAYLOAD)
    assert (assignment(plan), reason) == ({"a": (0, 1, 3), "c": (0, 2)}, "")
    without = planner(None)
    without.plan(infos("a", "b", "c"), PAYLOAD)
    assert "follows_file" not in without.state_dict()["plan"]


def test_a_plan_for_other_blocks_is_refused():
    check_plan_blocks(FILE, table())
    with pytest.raises(InputError, match=r"has 2 blocks, not the 3 of this model.*same --blocks"):
        check_plan_blocks(plan_of({"a": [1, 2]}, LAYERS[:2]), table())
    with pytest.raises(InputError, match="or other layers"):
        check_plan_blocks(plan_of({"a": [1, 2, 3]}, [["x"], ["y"], ["z"]]), table())


def test_the_digest_is_of_the_assignment():
    assert plan_digest(None) == ""
    assert plan_digest(FILE) == plan_digest(FILE.model_copy(update={"notes": ["x"], "solver": "exact"}))
    assert plan_digest(FILE) != plan_digest(plan_of({"a": [1], "c": [2, 3]}, LAYERS))
