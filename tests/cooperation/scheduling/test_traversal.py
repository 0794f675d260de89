"""Tasks get blocks that they traverse, within time and memory, with the gradient that every device would compute."""

import pytest
import tiny_fleet
import torch
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, names, plan

from taskedge.cooperation.scheduling.traversal import add_traversed_blocks


@pytest.mark.slow
@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.sampled_from(["deft", "replicate"]), st.data())
def test_a_task_keeps_its_blocks_and_stays_within_bounds(devices, blocks, seed, mode, data):
    slack = data.draw(st.sampled_from([0.0, 0.05, 0.1, 0.5]))
    capacity = data.draw(st.lists(st.floats(0.5, blocks + 0.1), min_size=devices, max_size=devices))  # what is left
    active = sorted(data.draw(st.sets(st.integers(1, blocks), min_size=1)))
    known = costs(devices, blocks, seed, capacity)
    tasks = plan(mode, devices, blocks, active=active, seed=seed)
    max_seconds = (1 + slack) * max(task.seconds for task in tasks)
    found = add_traversed_blocks(tasks, active, names(devices), known, max_seconds)
    for before, after in zip(tasks, found, strict=True):
        added = set(after.blocks) - set(before.blocks)
        assert set(before.blocks) <= set(after.blocks) <= {0, *active}
        assert list(after.blocks) == sorted(set(after.blocks))
        assert all(block < before.deepest for block in added)
        k, columns = int(after.device[1:]), [block - 1 for block in after.blocks if block]
        assert not added or known.memory_of_blocks(k, columns) <= known.capacity[k]
        assert after.compute_seconds == before.compute_seconds
        assert after.bandwidth_hz == before.bandwidth_hz
        assert after.up_seconds == pytest.approx((1000 * len(columns) + 500) / 1e4)
        assert after.seconds <= max_seconds
        for block in set(active) - set(after.blocks):  # it is too deep, or adding it would exceed time or memory
            wider = [*columns, block - 1]
            assert (
                block > before.deepest
                or after.seconds + 0.1 > max_seconds - 1e-9
                or known.memory_of_blocks(k, sorted(wider)) > known.capacity[k]
            )


def test_with_enough_time_a_device_answers_for_every_block_that_it_traverses():
    known, tasks = costs(4, 4), plan("deft", 4, 4)
    found = add_traversed_blocks(tasks, [1, 2, 3, 4], names(4), known, 1e9)
    assert sorted(task.blocks for task in found) == [(0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)]


@pytest.mark.slow
def test_one_round_moves_the_first_block_as_if_every_device_had_it(tmp_path):
    """In the first block a deft round with added blocks averages the gradients that fedavg averages."""

    def values(folder, **more):
        trainings = {f"d{place}": tiny_fleet.training(place) for place in range(2)}
        how = tiny_fleet.settings(devices=2, rounds=1, **more)
        head, _, events = tiny_fleet.run(tmp_path / folder, how, trainings)
        first_block = head.state.blocks.names[1]
        return {name: head.state.values[name] for name in first_block}, [e for e in events if e["event"] == "task"]

    every, _ = values("every", mode="fedavg")
    alone, tasks = values("alone")
    wide, wider = values("wide", traversal_slack=1e6)
    assert sum(1 in task["blocks"] for task in tasks) == 1
    assert sum(1 in task["blocks"] for task in wider) == 2
    assert all(task["result"] == "accepted" for task in wider)
    assert all(torch.equal(wide[name], every[name]) for name in every)
    assert any(not torch.equal(alone[name], every[name]) for name in every)
