"""Every block comes to every device that can take it in time, a plan's promises hold, and nobody is late for it."""

import tiny_fleet
from hypothesis import given
from hypothesis import strategies as st
from round_plans import costs, holders, plan

from taskedge.cooperation.scheduling.rotation import counted, in_turn
from taskedge.cooperation.scheduling.round_tasks import shares as shares_of
from taskedge.planning.link_models import FixedRateLink


def rounds(shares, known, count, longer=0.1, counts=None):
    """The shares of so many rounds, each after the other."""
    devices = len(known.down)
    link, names, made = FixedRateLink([1e4] * devices), [f"d{k}" for k in range(devices)], []
    counts = counts or {}
    for _ in range(count):
        made.append(in_turn(shares, names, known, link, counts, longer, 500.0))
        counts = counted(counts, made[-1])
    return made


def alike(devices, blocks):
    """Costs of devices of one speed."""
    known = costs(devices, blocks)
    known.compute[:] = known.compute[0]
    return known


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_devices_that_are_alike_see_every_block_equally_often(devices, blocks, seed):
    shares = plan("deft", devices, blocks, seed=seed)
    made = rounds(shares, alike(devices, blocks), 4 * devices, longer=9.0)
    for block in range(1, blocks + 1):
        times = [sum(block in one.blocks for r in made for one in r if one.device == f"d{k}") for k in range(devices)]
        assert sum(times) == 4 * devices
        assert max(times) - min(times) <= 2
        assert min(times) >= 3


@given(st.integers(1, 7), st.integers(1, 6), st.integers(0, 9), st.sampled_from(["deft", "replicate"]), st.data())
def test_a_round_keeps_the_plans_parts_and_its_time(devices, blocks, seed, mode, data):
    longer = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    capacity = data.draw(st.lists(st.floats(blocks + 0.1, 100), min_size=devices, max_size=devices))
    known, shares = costs(devices, blocks, seed, capacity), plan(mode, devices, blocks, seed=seed, capacity=capacity)
    latest = (1 + longer) * max(one.seconds for one in shares)
    for found in rounds(shares, known, 5, longer):
        assert sorted(one.blocks for one in found) == sorted(one.blocks for one in shares)
        names = [one.device for one in found]
        assert names == sorted(set(names))
        assert {b: len(h) for b, h in holders(found).items()} == {b: len(h) for b, h in holders(shares).items()}
        for one in found:
            k, columns = int(one.device[1:]), [block - 1 for block in one.blocks if block]
            assert one.compute_seconds == known.compute[k, columns[-1]]
            assert known.holding(k, columns) <= known.capacity[k]
            assert one.seconds <= latest


def test_a_slow_device_takes_its_turn_with_what_it_has_done_in_time():
    known = alike(4, 2)
    known.compute[3] *= 1.5
    link = FixedRateLink([1e4] * 4)
    planned = shares_of("deft", [f"d{k}" for k in range(4)], known, link, 1e6, [1, 2], head_bits=500.0)

    def seen(longer):
        made = rounds(planned, known, 12, longer)
        return {b: {o.device for found in made for o in found if b in o.blocks} for b in (1, 2)}

    everyone = {"d0", "d1", "d2", "d3"}
    assert seen(0.1) == {1: everyone, 2: everyone - {"d3"}}
    assert seen(1.0) == {1: everyone, 2: everyone}


def test_the_order_of_turns_follows_from_the_counts_alone():
    shares, known = plan("deft", 4, 4), alike(4, 4)
    whole = rounds(shares, known, 6, longer=9.0)
    counts = {}
    for found in whole[:3]:
        counts = counted(counts, found)
    assert rounds(shares, known, 3, longer=9.0, counts=counts) == whole[3:]


def test_in_a_run_every_block_is_trained_on_every_device(tmp_path):
    trainings = {f"d{place}": tiny_fleet.training(place) for place in range(6)}
    how = tiny_fleet.settings(devices=6, rounds=12, turns=0.1)
    _, _, events = tiny_fleet.run(tmp_path / "run", how, trainings)
    tasks = [e for e in events if e["event"] == "task"]
    assert all(e["result"] == "accepted" for e in tasks)
    seen = {(e["device"], block) for e in tasks for block in e["blocks"] if block}
    assert seen == {(name, block) for name in trainings for block in (1, 2, 3, 4)}
    kept = tiny_fleet.settings(devices=6, rounds=4)
    _, _, events = tiny_fleet.run(tmp_path / "kept", kept, {f"d{p}": tiny_fleet.training(p) for p in range(6)})
    assert len({e["device"] for e in events if e["event"] == "task"}) == 4
