"""Rotation brings every block to every device that can take it, and keeps the plan's promises and its time."""

import pytest
import tiny_fleet
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, holders, link, names, plan

from taskedge.cooperation.scheduling.assign_blocks import assign_blocks
from taskedge.cooperation.scheduling.rotation import rotate_blocks, update_counts


def rounds(tasks, known, count, slack=0.1, counts=None):
    """The tasks of ``count`` rounds, one after another."""
    devices = len(known.down)
    made = []
    counts = counts or {}
    for _ in range(count):
        made.append(rotate_blocks(tasks, names(devices), known, link(devices), counts, slack, 500.0))
        counts = update_counts(counts, made[-1])
    return made


def equal_costs(devices, blocks):
    """Costs of devices of equal speed."""
    known = costs(devices, blocks)
    known.compute[:] = known.compute[0]
    return known


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_equal_devices_see_every_block_equally_often(devices, blocks, seed):
    tasks = plan("deft", devices, blocks, seed=seed)
    made = rounds(tasks, equal_costs(devices, blocks), 4 * devices, slack=9.0)
    for block in range(1, blocks + 1):
        times = [
            sum(block in task.blocks for r in made for task in r if task.device == f"d{k}") for k in range(devices)
        ]
        assert sum(times) == 4 * devices
        assert max(times) - min(times) <= 2
        assert min(times) >= 3


@pytest.mark.slow
@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.sampled_from(["deft", "replicate"]), st.data())
def test_a_round_keeps_the_plans_tasks_and_its_time(devices, blocks, seed, mode, data):
    slack = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    capacity = data.draw(st.lists(st.floats(blocks + 0.1, 100), min_size=devices, max_size=devices))
    known, tasks = costs(devices, blocks, seed, capacity), plan(mode, devices, blocks, seed=seed, capacity=capacity)
    max_seconds = (1 + slack) * max(task.seconds for task in tasks)
    for found in rounds(tasks, known, 5, slack):
        assert sorted(task.blocks for task in found) == sorted(task.blocks for task in tasks)
        devices_of_round = [task.device for task in found]
        assert devices_of_round == sorted(set(devices_of_round))
        assert {b: len(h) for b, h in holders(found).items()} == {b: len(h) for b, h in holders(tasks).items()}
        for task in found:
            k, columns = int(task.device[1:]), [block - 1 for block in task.blocks if block]
            assert task.compute_seconds == known.compute[k, columns[-1]]
            assert known.memory_of_blocks(k, columns) <= known.capacity[k]
            assert task.seconds <= max_seconds


def test_a_slow_device_gets_only_the_blocks_that_it_finishes_in_time():
    known = equal_costs(4, 2)
    known.compute[3] *= 1.5
    planned = assign_blocks("deft", names(4), known, link(4), 1e6, [1, 2], head_bits=500.0)

    def seen(slack):
        made = rounds(planned, known, 12, slack)
        return {b: {o.device for found in made for o in found if b in o.blocks} for b in (1, 2)}

    everyone = {"d0", "d1", "d2", "d3"}
    assert seen(0.1) == {1: everyone, 2: everyone - {"d3"}}
    assert seen(1.0) == {1: everyone, 2: everyone}


def test_rotation_depends_on_the_counts_alone():
    tasks, known = plan("deft", 4, 4), equal_costs(4, 4)
    whole = rounds(tasks, known, 6, slack=9.0)
    counts = {}
    for found in whole[:3]:
        counts = update_counts(counts, found)
    assert rounds(tasks, known, 3, slack=9.0, counts=counts) == whole[3:]


@pytest.mark.slow
def test_in_a_run_every_block_is_trained_on_every_device(tmp_path):
    trainings = {f"d{place}": tiny_fleet.training(place) for place in range(6)}
    how = tiny_fleet.settings(devices=6, rounds=12, rotation_slack=0.1)
    _, _, events = tiny_fleet.run(tmp_path / "run", how, trainings)
    tasks = [e for e in events if e["event"] == "task"]
    assert all(e["result"] == "accepted" for e in tasks)
    seen = {(e["device"], block) for e in tasks for block in e["blocks"] if block}
    assert seen == {(name, block) for name in trainings for block in (1, 2, 3, 4)}
    kept = tiny_fleet.settings(devices=6, rounds=4)
    _, _, events = tiny_fleet.run(tmp_path / "kept", kept, {f"d{p}": tiny_fleet.training(p) for p in range(6)})
    assert len({e["device"] for e in events if e["event"] == "task"}) == 4
