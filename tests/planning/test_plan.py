from __future__ import annotations

import json

import numpy as np
import pytest
from shapes import device, fleet, table

from taskedge.errors import InputError, UnknownName
from taskedge.planning import InfeasiblePlan, MixedLink
from taskedge.planning.fleet_costs import fleet_costs, step_bytes
from taskedge.planning.plan import Plan, fleet_link, make_plan, read_plan
from taskedge.planning.solvers import SOLVERS
from taskedge.reporting.tables import plan_text

FIVE = [
    device("slow", flops_per_second=3e5),
    device("fast", flops_per_second=4e6, gain_db=-80.0),
    device("middle"),
    device("far", gain_db=-110.0),
    device("wired", gain_db=None, transmit_watts=None, wired_bits_per_second=1e6),
]


def plan_of(loaded, shape, **options) -> Plan:
    return make_plan(loaded, shape, fleet_costs(loaded, shape), **options)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_latency_is_the_last_device(solver) -> None:
    loaded = fleet(*FIVE)
    plan = plan_of(loaded, table(), solver=solver)
    assert plan.latency_seconds == pytest.approx(max(part.seconds for part in plan.parts) + 0.5)
    assert plan.lower_bound_seconds <= plan.latency_seconds * (1 + 1e-9)
    assert sum(part.bandwidth_hz for part in plan.parts) <= 1e6 * (1 + 1e-9)
    assert {block for part in plan.parts for block in part.blocks} == {1, 2, 3}
    assert {part.device for part in plan.parts} | set(plan.idle) == {row["name"] for row in FIVE}
    assert all(part.memory_bytes <= part.capacity_bytes for part in plan.parts)


def test_a_plan_is_a_file(tmp_path) -> None:
    plan = plan_of(fleet(*FIVE), table(), budget="0.1%")
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert read_plan(path) == plan
    path.write_text(plan.to_json().replace("latency_seconds", "latency"))
    with pytest.raises(InputError, match="latency_seconds: Field required"):
        read_plan(path)
    with pytest.raises(InputError, match="makes one"):
        read_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["parts"][0].update(blocks=[9]), "has block 9, and there are 3 blocks"),
        (lambda plan: plan["parts"][0].update(blocks=[0]), "greater than or equal to 1"),
        (lambda plan: plan["parts"][0].update(blocks=[]), "at least 1 item"),
        (lambda plan: plan["parts"][0].update(blocks=[2, 1]), "are not in rising order"),
        (lambda plan: plan["parts"].pop(), "no device has block 3"),
        (lambda plan: plan["parts"][0].update(device=plan["parts"][1]["device"]), "is named 2 times"),
        (lambda plan: plan["idle"].append(plan["parts"][0]["device"]), "is named 2 times"),
        (lambda plan: plan["parts"][0].update(bandwidth_hz=2e6), "more bandwidth than the band"),
        (lambda plan: plan["parts"][0].update(memory_bytes=1e12), "needs more memory than it has"),
        (lambda plan: plan["blocks"][0].update(layers=plan["blocks"][1]["layers"]), "is in 2 blocks"),
        (lambda plan: plan.update(parts=[]), "at least 1 item"),
        (lambda plan: plan.update(format="taskedge-plan-2"), "format"),
        (lambda plan: plan.update(color="red"), "color: Extra inputs are not permitted"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(tmp_path, change, message) -> None:
    plan = json.loads(plan_of(fleet(*FIVE), table(), solver="one-each", compare=()).to_json())
    change(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError, match=message):
        read_plan(path)


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_plan_of_every_solver_is_read_back(tmp_path, solver) -> None:
    path = tmp_path / "plan.json"
    plan = plan_of(fleet(*FIVE), table(), solver=solver, compare=())
    path.write_text(plan.to_json())
    assert read_plan(path) == plan


def test_a_plan_gives_assignments_for_the_devices_of_a_run() -> None:
    plan = plan_of(fleet(*FIVE), table(), solver="one-each", compare=())
    names = [row["name"] for row in FIVE][::-1]
    assignments = plan.assignments(names)
    assert [names[assignment.device] for assignment in assignments] == [part.device for part in plan.parts]
    assert [assignment.blocks for assignment in assignments] == [(0,), (1,), (2,)]
    assert [assignment.bandwidth for assignment in assignments] == [part.bandwidth_hz for part in plan.parts]
    with pytest.raises(InputError, match=f"not here: {plan.parts[0].device}"):
        plan.assignments([name for name in names if name != plan.parts[0].device])


def test_a_plan_is_for_one_model_and_its_blocks() -> None:
    shape = table()
    plan = plan_of(fleet(*FIVE), shape, compare=())
    plan.check_model(shape)
    with pytest.raises(InputError, match=r"the plan is for toy \(digest abc\)"):
        plan.check_model(table(digest="other"))
    with pytest.raises(InputError, match="with the same --blocks"):
        plan.check_model(shape.merged([2, 1]))


def test_the_default_is_optimal_and_no_other_solver_is_below_its_bound() -> None:
    plan = plan_of(fleet(*FIVE), table())
    assert (plan.solver, plan.stopped) == ("exact", "optimal")
    assert plan.lower_bound_seconds == pytest.approx(plan.latency_seconds)
    assert all(seconds >= plan.latency_seconds * (1 - 1e-9) for seconds in plan.compared_seconds.values() if seconds)


@pytest.mark.parametrize("compare", [(), ("exact",)])
def test_the_bound_is_that_of_all_plans(compare) -> None:
    """A plan of one block a device is not called optimal where several on a device are sooner."""
    rows = [
        device("fast", flops_per_second=4e6),
        device("b", flops_per_second=4e6),
        device("slow", flops_per_second=1e3),
    ]
    best, each = plan_of(fleet(*rows), table()), plan_of(fleet(*rows), table(), solver="one-each", compare=compare)
    assert each.latency_seconds > 50 * best.latency_seconds
    assert each.lower_bound_seconds <= best.latency_seconds * (1 + 1e-9)
    assert each.gap_ratio > 0.9
    assert best.idle == ["slow"]
    assert "sooner without 1 of 3 devices" in best.notes[0]


def test_a_deprecated_solver_plans_and_says_its_new_name() -> None:
    plan = plan_of(fleet(*FIVE), table(), solver="joint", compare=())
    assert plan.solver == "exact"
    assert plan.notes[0] == "the solver 'joint' is now 'exact'; the old name will go"


def test_the_dual_ascent_states_its_own_gap() -> None:
    plan = plan_of(fleet(*FIVE), table(), solver="dual-ascent")
    assert plan.compared_seconds["exact"] <= plan.latency_seconds
    assert any("the bound of the ascent, for one block a device" in note for note in plan.notes)


@pytest.mark.parametrize("weak", [{"memory_bytes": 1000.0}, {"gain_db": -400.0, "transmit_watts": 1e-300}])
def test_a_device_that_can_do_nothing_is_idle(weak) -> None:
    rows = [device("a"), device("b"), device("weak", **weak)]
    plan = plan_of(fleet(*rows), table())
    assert plan.idle == ["weak"]
    assert plan.latency_seconds == pytest.approx(plan_of(fleet(*rows[:2]), table()).latency_seconds)


def test_fewer_devices_than_blocks() -> None:
    plan = plan_of(fleet(*FIVE[:2]), table(), solver="one-each")
    assert plan.solver == "exact"
    assert "devices take several blocks" in plan.notes[0]
    assert sorted(block for part in plan.parts for block in part.blocks) == [1, 2, 3]
    assert plan.compared_seconds["random"] is None
    assert "no plan" in plan_text(plan.model_dump())


@pytest.mark.slow
def test_several_blocks_are_held_together() -> None:
    shape = table(4, input_bytes=np.full(4, 1e6))
    alone = step_bytes(shape, 16)
    together = step_bytes(shape, 16, together=True)
    room = float((alone[-1] + together[1] + 1e6) / 2)
    assert alone[-1] < room < together[-1]
    loaded = fleet(device("fast", flops_per_second=1e9, memory_bytes=room), device("a"), device("b"))
    plan = plan_of(loaded, shape, solver="several")
    assert all(part.memory_bytes <= part.capacity_bytes for part in plan.parts)
    with pytest.raises(InfeasiblePlan, match="batch_sequences = 1 instead of 2"):
        plan_of(fleet(device("fast", memory_bytes=room)), shape, solver="one-device")


def test_copies_give_every_block_to_several_devices() -> None:
    rows = [device(f"d{n}", flops_per_second=1e6 * (n + 1)) for n in range(6)]
    plan = plan_of(fleet(*rows), table(), copies=2, solver="one-each")
    assert sorted(part.blocks[0] for part in plan.parts) == [1, 1, 2, 2, 3, 3]
    assert len({part.device for part in plan.parts}) == 6
    with pytest.raises(InputError, match="'one-each' give 1 to 2"):
        plan_of(fleet(*rows), table(), copies=3, solver="one-each")
    with pytest.raises(InputError, match="'exact' give 1 to 6"):
        plan_of(fleet(*rows), table(), copies=7)


def test_copies_are_on_different_devices_also_if_these_take_several_blocks() -> None:
    plan = plan_of(fleet(*FIVE[:2]), table(), copies=2, compare=("one-each", "one-device"))
    assert [part.blocks for part in plan.parts] == [[1, 2, 3], [1, 2, 3]]
    assert plan.compared_seconds["one-each"] == plan.latency_seconds


def test_wired_devices_take_no_bandwidth() -> None:
    loaded = fleet(*FIVE)
    assert isinstance(fleet_link(loaded), MixedLink)
    plan = plan_of(loaded, table(1), solver="exact")
    wired = plan_of(fleet(FIVE[4]), table(1))
    assert wired.parts[0].bandwidth_hz == 0
    assert wired.parts[0].up_seconds == pytest.approx(1600 / 1e6)
    assert plan.latency_seconds <= wired.latency_seconds


def test_an_unknown_solver() -> None:
    with pytest.raises(UnknownName, match="did you mean 'exact'"):
        plan_of(fleet(*FIVE), table(), solver="exactt")


def test_a_block_that_nobody_can_hold() -> None:
    shape = table(activation_bytes=np.full(3, 1e6))
    need = step_bytes(shape, 16)
    room = (need[1] + need[2]) / 2
    loaded = fleet(*(device(name, memory_bytes=float(room)) for name in "abcd"))
    with pytest.raises(InfeasiblePlan) as caught:
        plan_of(loaded, shape)
    assert caught.value.exit_code == 3
    assert caught.value.block == 2
    text = str(caught.value)
    assert "no device can hold block 3 of 3" in text
    assert f"lacks {(need[2] - room) / 1e6:,.0f} MB" in text
    assert "batch_sequences = 1 instead of 2" in text
    assert "gradient checkpointing fits" in text
    smaller = fleet(*(device(name, memory_bytes=float(room), batch_sequences=1) for name in "abcd"))
    assert plan_of(smaller, shape).latency_seconds > 0  # the remedy holds what it says


def test_too_few_devices_for_the_deep_blocks() -> None:
    shape = table(activation_bytes=np.full(3, 1e6))
    need = step_bytes(shape, 16)
    small = float((need[0] + need[1]) / 2)
    rows = [device("big"), *(device(name, memory_bytes=small) for name in "abc")]
    with pytest.raises(InfeasiblePlan) as caught:
        plan_of(fleet(*rows), shape, solver="one-each")
    assert caught.value.block == 1
    assert "need 2 devices, and only 1 device holds it" in str(caught.value)
    assert "--blocks 1 fits: 1 device holds the deepest block" in str(caught.value)


def test_a_device_that_cannot_be_heard() -> None:
    rows = [device("silent", gain_db=-400.0, transmit_watts=1e-300), device("heard")]
    with pytest.raises(InfeasiblePlan, match="'silent' cannot reach the server"):
        plan_of(fleet(*rows), table(2), solver="one-each")
    assert plan_of(fleet(*rows), table(2)).idle == ["silent"]
