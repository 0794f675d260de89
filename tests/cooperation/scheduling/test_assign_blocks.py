"""Each mode assigns the blocks that it promises, within memory, and predictions follow the costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, holders, plan

from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.cooperation.scheduling.assign_blocks import device_flops
from taskedge.planning.problem import InfeasiblePlan


@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.data())
def test_deft_gives_each_active_block_to_one_device(devices, blocks, seed, data):
    active = sorted(data.draw(st.sets(st.integers(1, blocks), min_size=1)))
    tasks = plan("deft", devices, blocks, active=active, seed=seed)
    devices_of = holders(tasks)
    assert sorted(devices_of) == [0, *active]
    assert all(len(devices_of[block]) == 1 for block in active)
    assert devices_of[0] == [task.device for task in tasks]
    for task in tasks:
        assert task.compute_seconds == costs(devices, blocks, seed).compute[int(task.device[1:]), task.deepest - 1]
        upload_bits = 1000 * (len(task.blocks) - 1) + 500
        assert task.up_seconds == pytest.approx(upload_bits / 1e4)
        assert task.seconds == pytest.approx(0.1 + task.compute_seconds + task.up_seconds)


@pytest.mark.parametrize("weak", [{"slow": [2]}, {"capacity": [100, 100, 1e-9]}])
def test_a_weak_device_that_joins_is_idle_and_delays_nobody(weak):
    before, after = plan("deft", 2, 3), plan("deft", 3, 3, **weak)
    assert {task.device for task in after} <= {"d0", "d1"}
    assert max(task.seconds for task in after) <= max(task.seconds for task in before) * (1 + 1e-9)


def test_idle_devices_take_blocks_within_the_slack():
    few, many = plan("deft", 4, 4, seed=3), plan("deft", 4, 4, seed=3, spread_slack=0.5)
    assert len(few) < len(many)
    assert max(task.seconds for task in many) <= 1.5 * max(task.seconds for task in few) * (1 + 1e-9)


def test_copies_are_also_placed_sooner_without_a_weak_device():
    tasks = plan("replicate", 5, 2, copies=2, slow=[4])
    assert all(len(set(devices)) == 2 for block, devices in holders(tasks).items() if block)
    assert "d4" not in {task.device for task in tasks}


def test_a_solver_that_draws_draws_by_the_seed():
    drawn = [holders(plan("deft", 6, 6, solver="random", draw=seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


@pytest.mark.slow
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_replicate_gives_each_block_to_several_different_devices(devices, blocks, copies, seed):
    devices_of = holders(plan("replicate", devices, blocks, copies=copies, seed=seed))
    for block in range(1, blocks + 1):
        assert len(set(devices_of[block])) == len(devices_of[block]) == min(copies, devices)


def test_replicate_makes_fewer_copies_where_memory_allows_no_more():
    devices_of = holders(plan("replicate", 3, 3, copies=2, capacity=[100, 1.5, 1.5]))
    assert len(devices_of[1]) == 2
    assert devices_of[3] == ["d0"]


def test_fedavg_gives_all_blocks_to_all_that_can_hold_them():
    tasks = plan("fedavg", 4, 3, capacity=[100, 100, 2.0, 100])
    assert [task.device for task in tasks] == ["d0", "d1", "d3"]
    assert {task.blocks for task in tasks} == {(0, 1, 2, 3)}


def test_the_head_can_go_with_the_first_block_alone():
    tasks = plan("deft", 3, 3, head="first")
    assert [task.device for task in tasks if 0 in task.blocks] == holders(tasks)[1]
    assert holders(plan("deft", 3, 4, active=[2, 4], head="first"))[0] == holders(plan("deft", 3, 4, active=[2, 4]))[2]


def test_a_block_that_fits_no_device_is_named():
    with pytest.raises(InfeasiblePlan, match="block 2"):
        plan("deft", 4, 3, capacity=[2, 2, 2, 2])


def test_flops_count_the_way_down_to_the_deepest_block():
    from shapes import table

    shape = table(3)
    forward = shape.forward_flops.sum() + shape.other_forward_flops
    one, other = RoundTask("a", (0, 1, 2)), RoundTask("b", (3,))
    expected = 10 * (forward + shape.backward_flops[:2].sum()) + 5 * (forward + shape.backward_flops.sum())
    assert device_flops(shape, [one, other], {"a": 10, "b": 5}) == pytest.approx(expected)
