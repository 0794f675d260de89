import numpy as np
import pytest
from fleets import best_matching

from taskedge.errors import InputError
from taskedge.planning import InfeasiblePlan, match_blocks


def monotone_case(rng):
    devices, blocks = int(rng.integers(1, 8)), int(rng.integers(1, 6))
    latency = np.sort(rng.integers(0, 12, (devices, blocks)).astype(float), axis=1)  # small integers: many ties
    fits = np.arange(blocks) < rng.integers(0, blocks + 2, devices)[:, None]
    return latency, fits


def check(latency, fits):
    best = best_matching(latency, fits)
    if not np.isfinite(best):
        with pytest.raises(InfeasiblePlan) as caught:
            match_blocks(latency, fits)
        assert caught.value.shortfall >= 1
        return None
    plan = match_blocks(latency, fits)
    assert plan.latency == best
    assert len(set(plan.device_of_block)) == latency.shape[1]
    pairs = plan.device_of_block, np.arange(latency.shape[1])
    assert fits[pairs].all()
    assert latency[pairs].max() == best
    return plan


def test_optimal_on_monotone_cases():
    rng = np.random.default_rng(0)
    for _ in range(300):
        plan = check(*monotone_case(rng))
        assert plan is None or plan.method == "crunch"


def test_falls_back_and_stays_optimal_without_monotone_columns():
    rng = np.random.default_rng(1)
    methods = set()
    for _ in range(150):
        devices, blocks = int(rng.integers(1, 7)), int(rng.integers(1, 5))
        latency = rng.integers(0, 9, (devices, blocks)).astype(float)
        plan = check(latency, rng.random((devices, blocks)) < 0.7)
        if plan:
            methods.add(plan.method)
    assert methods == {"crunch", "bottleneck"}


def test_many_devices_are_read_in_chunks():
    rng = np.random.default_rng(2)
    latency = np.sort(rng.random((10_000, 5)), axis=1)
    plan = match_blocks(latency, np.ones(latency.shape, bool))
    # the closed form, from a full sort
    assert plan.latency == max(np.sort(latency[:, b])[5 - b - 1] for b in range(5))


def test_infeasible_names_the_block_and_the_shortfall():
    fits = np.ones((4, 3), bool)
    fits[:, 2] = False
    with pytest.raises(InfeasiblePlan, match="no device can take block 2") as caught:
        match_blocks(np.ones((4, 3)), fits)
    assert (caught.value.block, caught.value.shortfall, caught.value.exit_code) == (2, 1, 3)
    fits[:1, 2] = True
    fits[:, 1] = fits[:, 2]
    with pytest.raises(InfeasiblePlan, match="needed for another block"):
        match_blocks(np.ones((4, 3)), fits)
    with pytest.raises(InfeasiblePlan, match="several"):
        match_blocks(np.ones((2, 3)), np.ones((2, 3), bool))


def test_infinite_latency_is_never_chosen():
    latency = np.array([[1.0, np.inf], [2.0, 3.0]])
    assert match_blocks(latency, np.ones((2, 2), bool)).device_of_block.tolist() == [0, 1]
    with pytest.raises(InfeasiblePlan):
        match_blocks(latency[:1].repeat(2, axis=0), np.ones((2, 2), bool))


@pytest.mark.parametrize(
    ("latency", "fits", "message"),
    [
        (np.array([[1.0, np.nan]]), np.ones((1, 2), bool), "device 0, block 1 has nan"),
        (np.array([[-1.0, 2.0]]), np.ones((1, 2), bool), "negative"),
        (np.ones((2, 2)), np.ones((2, 3), bool), r"shape of latency, \(2, 2\), not \(2, 3\)"),
        (np.ones((0, 2)), np.ones((0, 2), bool), "at least one"),
    ],
)
def test_bad_input_is_named(latency, fits, message):
    with pytest.raises(InputError, match=message):
        match_blocks(latency, fits)
