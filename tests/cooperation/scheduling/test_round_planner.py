"""A plan is kept while nothing changes, made anew with a reason, and continued from its state."""

import json

import pytest
import tiny_fleet
from round_plans import holders
from shapes import device, fleet, table

from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.scheduling.round_planner import MAX_BITS_PER_SECOND, RoundPlanner, active_blocks
from taskedge.planning.problem import InfeasiblePlan

PAYLOAD = (50, 50, 50)
"""Every value of the blocks of ``table()``."""


def infos(*names, memory_bytes=1e9):
    return {name: DeviceInfo("base", (), 20, memory_bytes, None, "", None) for name in names}


def planner(fleet=None, **changes):
    return RoundPlanner(table(), 10, fleet, tiny_fleet.settings(**changes))


def test_a_plan_is_kept_while_nothing_changes():
    made = planner()
    first, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
    assert reason == "first round"
    assert {len(devices) for block, devices in holders(first.tasks).items() if block} == {1}
    again, reason = made.plan(infos("a", "b", "c"), PAYLOAD)
    assert (again, reason) == (first, "")
    assert made.planned_devices == ("a", "b", "c")


def test_the_reason_of_a_new_plan():
    made = planner(calibrate=True, replan_drift=0.5)
    made.plan(infos("a", "b"), PAYLOAD)
    assert made.plan(infos("b", "c"), PAYLOAD)[1] == "joined: c; left: a"
    plan, reason = made.plan(infos("b", "c"), (50, 0, 50))
    assert reason == "values that train, by block: [50, 0, 50]"
    assert plan.active == (1, 3)
    assert {block for task in plan.unfrozen_tasks for block in task.blocks} == {0, 1, 2, 3}
    made.calibration.mark_late("b")
    assert made.plan(infos("b", "c"), (50, 0, 50))[1] == "other pace: b"
    assert made.plan(infos("b", "c"), (50, 0, 50))[1] == ""


def test_a_plan_ignores_observed_seconds_unless_calibrated():
    made = planner()
    first, _ = made.plan(infos("a", "b"), PAYLOAD)
    for _ in range(3):
        made.calibration.mark_late("a")
    assert made.plan(infos("a", "b"), PAYLOAD) == (first, "")


def test_predictions_follow_observations_and_nominal_costs_do_not():
    made = planner(calibrate=True, replan_drift=0.1)
    plan, _ = made.plan(infos("a"), PAYLOAD)
    (task,) = plan.tasks
    nominal = made.nominal(plan, task)
    assert made.predicted_seconds(plan, task) == pytest.approx(task.seconds)
    compute_seconds, transport = plan.split_seconds(task)
    made.observe(plan, task, 3 * compute_seconds + transport + 1.0, 3 * compute_seconds)
    assert made.predicted_seconds(plan, task) == pytest.approx(3 * compute_seconds + transport + 1.0)
    replanned, reason = made.plan(infos("a"), PAYLOAD)
    assert reason == "other pace: a"
    (task,) = replanned.tasks
    assert task.compute_seconds == pytest.approx(3 * compute_seconds)
    assert replanned.split_seconds(task) == pytest.approx((compute_seconds, transport))
    assert made.nominal(replanned, task) == pytest.approx(nominal)
    assert made.predicted_round_seconds(replanned) == pytest.approx(task.seconds)


def test_nominal_costs_are_those_of_the_fleet_file():
    row = device("a", wired_bits_per_second=5e5, transmit_watts=None, gain_db=None)
    made = planner(fleet(row))
    plan, _ = made.plan(infos("a"), PAYLOAD)
    nominal = made.nominal(plan, plan.tasks[0])
    assert nominal == pytest.approx(
        {"compute_seconds": 64 * 910 / 5e5, "downlink_bits_per_second": 1e6, "uplink_bits_per_second": 5e5}
    )
    assert all(value <= MAX_BITS_PER_SECOND for value in nominal.values())


def test_a_resumed_planner_continues_the_same_plans():
    options = {"rotation_slack": 9.0, "traversal_slack": 0.2}
    devices = infos("a", "b", "c", "d")
    whole = planner(**options)
    plans = [whole.plan(devices, PAYLOAD) for _ in range(6)]
    first, second = planner(**options), planner(**options)
    for _ in range(3):
        first.plan(devices, PAYLOAD)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.plan(devices, PAYLOAD) for _ in range(3)] == plans[3:]


def test_the_keys_of_the_state():
    """Run folders of older versions have these keys."""
    made = planner()
    assert made.state_dict() == {"pace": {}, "plan": None, "counts": {}}
    made.plan(infos("a"), PAYLOAD)
    state = made.state_dict()
    assert list(state["plan"]) == ["members", "payload", "shares", "everything", "pace", "accumulate", "tokens"]
    assert state["counts"] == {"a": {"0": 1, "1": 1, "2": 1, "3": 1}}


def test_a_summary_for_the_log():
    made = planner()
    plan, _ = made.plan(infos("a"), PAYLOAD)
    summary = made.summary(plan)
    assert summary["shares"] == {"a": [0, 1, 2, 3]}
    assert summary["corrections"] == {"a": 1.0}
    assert summary["predicted_seconds"] == pytest.approx(plan.tasks[0].seconds)


def test_a_block_that_fits_no_device_cannot_be_planned():
    with pytest.raises(InfeasiblePlan):
        planner().plan(infos("a", memory_bytes=1.0), PAYLOAD)


def test_blocks_with_a_payload_are_active():
    assert active_blocks((3, 0, 1)) == (1, 3)
