"""Who gets which blocks: each mode keeps its promise, within memory, and predictions follow the plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, holders, plan

from taskedge.cooperation.scheduling.round_tasks import Share, device_flops, read_share
from taskedge.planning.problem import InfeasiblePlan


@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.data())
def test_deft_gives_each_active_block_to_one_device(devices, blocks, seed, data):
    active = sorted(data.draw(st.sets(st.integers(1, blocks), min_size=1)))
    found = plan("deft", devices, blocks, active=active, seed=seed)
    held = holders(found)
    assert sorted(held) == [0, *active]
    assert all(len(held[block]) == 1 for block in active)
    assert held[0] == [one.device for one in found]
    for one in found:
        assert one.compute_seconds == costs(devices, blocks, seed).compute[int(one.device[1:]), one.deepest - 1]
        sent = 1000 * (len(one.blocks) - 1) + 500
        assert one.up_seconds == pytest.approx(sent / 1e4)
        assert one.seconds == pytest.approx(0.1 + one.compute_seconds + one.up_seconds)


def test_a_solver_that_draws_draws_by_the_seed():
    drawn = [holders(plan("deft", 6, 6, solver="random", draw=seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_replicate_gives_each_block_to_several_different_devices(devices, blocks, copies, seed):
    held = holders(plan("replicate", devices, blocks, copies=copies, seed=seed))
    for block in range(1, blocks + 1):
        assert len(set(held[block])) == len(held[block]) == min(copies, devices)


def test_replicate_makes_fewer_copies_where_memory_allows_no_more():
    held = holders(plan("replicate", 3, 3, copies=2, capacity=[100, 1.5, 1.5]))
    assert len(held[1]) == 2
    assert held[3] == ["d0"]


def test_fedavg_gives_all_blocks_to_all_that_can_hold_them():
    found = plan("fedavg", 4, 3, capacity=[100, 100, 2.0, 100])
    assert [one.device for one in found] == ["d0", "d1", "d3"]
    assert {one.blocks for one in found} == {(0, 1, 2, 3)}


def test_the_head_can_go_with_the_first_block_alone():
    found = plan("deft", 3, 3, head="first")
    assert [one.device for one in found if 0 in one.blocks] == holders(found)[1]
    assert holders(plan("deft", 3, 4, active=[2, 4], head="first"))[0] == holders(plan("deft", 3, 4, active=[2, 4]))[2]


def test_a_block_that_nobody_holds_is_said():
    with pytest.raises(InfeasiblePlan, match="block 2"):
        plan("deft", 4, 3, capacity=[2, 2, 2, 2])


def test_a_share_goes_through_json_facts():
    share = Share("d0", (0, 2), 1.0, 2.0, 3.0, 4.0, 5.0)
    assert read_share(share.facts()) == share
    assert share.deepest == 2


def test_flops_count_the_way_down_to_the_deepest_block():
    from planning.shapes import table

    shape = table(3)
    forward = shape.forward_flops.sum() + shape.other_forward_flops
    one = Share("a", (0, 1, 2), 0, 0, 0, 0, 0)
    other = Share("b", (3,), 0, 0, 0, 0, 0)
    expected = 10 * (forward + shape.backward_flops[:2].sum()) + 5 * (forward + shape.backward_flops.sum())
    assert device_flops(shape, [one, other], {"a": 10, "b": 5}) == pytest.approx(expected)
