"""The simulated queues of a tree of coordinators, against a loop."""

import numpy as np
import pytest

from benchmarks.planning.hierarchy import Costs, served, simulate

COSTS = Costs(98_762.0, 28_354.0, 197_652.0, 2.4e-3, 2e-4, (600.0, 0.25), 3.8)


def one_by_one(arrivals, seconds):
    free, done = 0.0, {}
    for place in sorted(range(len(arrivals)), key=lambda place: arrivals[place]):
        free = done[place] = max(free, arrivals[place]) + seconds
    return [done[place] for place in range(len(arrivals))]


@pytest.mark.parametrize("seconds", [0.0, 0.05, 3.0])
def test_jobs_are_served_first_come_first_served(seconds):
    arrivals = np.random.default_rng(0).uniform(0, 10, 50)
    np.testing.assert_allclose(served(arrivals, seconds), one_by_one(arrivals, seconds))


def round_of(devices, tiers):
    return simulate(COSTS, devices, tiers, np.random.default_rng(1))


def test_a_round_takes_as_long_as_its_busiest_part():
    alone, crowded = round_of(10, ()), round_of(20_000, ())
    assert alone["devices_alone_s"] < alone["round_s"] < alone["devices_alone_s"] + 0.1
    assert crowded["round_s"] == pytest.approx(20_000 * COSTS.answer_seconds, rel=0.05)
    assert crowded["root_in_mb"] == pytest.approx(20_000 * COSTS.answer_bytes / 1e6)


def test_a_tree_parts_the_work_and_keeps_the_devices():
    flat, tree, deep = (round_of(20_000, tiers) for tiers in ((), (20,), (4, 20)))
    assert tree["devices_alone_s"] == flat["devices_alone_s"]
    assert tree["region_core_s"] == pytest.approx(flat["root_core_s"] / 20)
    assert tree["round_s"] < deep["round_s"] < flat["round_s"]
    assert tree["root_in_mb"] == pytest.approx(20 * COSTS.sum_bytes / 1e6)
    assert deep["root_in_mb"] == pytest.approx(4 * COSTS.sum_bytes / 1e6)
