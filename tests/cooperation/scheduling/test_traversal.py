"""Parts are widened by what they pass, within time and memory; what is sent so is the gradient that all would send."""

import pytest
import tiny_fleet
import torch
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, plan

from taskedge.cooperation.scheduling.traversal import in_passing


@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.sampled_from(["deft", "replicate"]), st.data())
def test_a_widened_part_keeps_what_it_had_and_its_bounds(devices, blocks, seed, mode, data):
    longer = data.draw(st.sampled_from([0.0, 0.05, 0.1, 0.5]))
    capacity = data.draw(st.lists(st.floats(0.5, blocks + 0.1), min_size=devices, max_size=devices))  # what is left
    active = sorted(data.draw(st.sets(st.integers(1, blocks), min_size=1)))
    known = costs(devices, blocks, seed, capacity)
    shares = plan(mode, devices, blocks, active=active, seed=seed)
    latest = (1 + longer) * max(one.seconds for one in shares)
    found = in_passing(shares, active, [f"d{k}" for k in range(devices)], known, latest)
    for before, after in zip(shares, found, strict=True):
        added = set(after.blocks) - set(before.blocks)
        assert set(before.blocks) <= set(after.blocks) <= {0, *active}
        assert list(after.blocks) == sorted(set(after.blocks))
        assert all(block < before.deepest for block in added)
        k, columns = int(after.device[1:]), [block - 1 for block in after.blocks if block]
        assert not added or known.holding(k, columns) <= known.capacity[k]
        assert after.compute_seconds == before.compute_seconds
        assert after.bandwidth_hz == before.bandwidth_hz
        assert after.up_seconds == pytest.approx((1000 * len(columns) + 500) / 1e4)
        assert after.seconds <= latest
        for block in set(active) - set(after.blocks):  # it goes deeper than that, or another would be too much
            wider = [*columns, block - 1]
            assert (
                block > before.deepest
                or after.seconds + 0.1 > latest - 1e-9
                or known.holding(k, sorted(wider)) > known.capacity[k]
            )


def test_with_time_enough_a_device_answers_for_all_that_it_passes():
    known, shares = costs(4, 4), plan("deft", 4, 4)
    found = in_passing(shares, [1, 2, 3, 4], [f"d{k}" for k in range(4)], known, 1e9)
    assert sorted(one.blocks for one in found) == [(0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)]


def test_one_round_moves_the_first_block_as_if_every_device_had_it(tmp_path):
    """In the first block a widened deft round averages the gradients that fedavg averages."""

    def values(folder, **more):
        trainings = {f"d{place}": tiny_fleet.training(place) for place in range(2)}
        how = tiny_fleet.settings(devices=2, rounds=1, **more)
        head, _, events = tiny_fleet.run(tmp_path / folder, how, trainings)
        names = head.state.blocks.names[1]
        return {name: head.state.values[name] for name in names}, [e for e in events if e["event"] == "task"]

    every, _ = values("every", mode="fedavg")
    alone, tasks = values("alone")
    wide, wider = values("wide", passing=1e6)
    assert sum(1 in task["blocks"] for task in tasks) == 1
    assert sum(1 in task["blocks"] for task in wider) == 2
    assert all(task["result"] == "accepted" for task in wider)
    assert all(torch.equal(wide[name], every[name]) for name in every)
    assert any(not torch.equal(alone[name], every[name]) for name in every)
