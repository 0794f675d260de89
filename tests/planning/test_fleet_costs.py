from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import device, fleet, profile, table

from taskedge.errors import InputError
from taskedge.planning.fleet_costs import (
    ALLOCATOR_FACTOR,
    RUNTIME_BYTES,
    STATE_BYTES,
    balanced_sizes,
    fleet_costs,
    step_bytes,
)
from taskedge.profiling.profile_file import Profile


def measured_fleet(profile: Profile, **changes):
    loaded = fleet(device(**changes), device("b"))
    loaded.device[0]._profile = profile
    return loaded


def test_seconds_by_hand() -> None:
    costs = fleet_costs(fleet(device()), table())
    # 64 tokens, (3 * 100 + 10 forward, then 200 per depth) / (1e6 * 0.5)
    assert np.allclose(costs.compute, [[64 * 510 / 5e5, 64 * 710 / 5e5, 64 * 910 / 5e5]])
    assert np.allclose(costs.bits, 50 * 4 * 8)
    assert np.allclose(costs.down, 3 * 50 * 32 / 1e6)
    assert np.allclose(costs.busy, costs.compute + costs.down[:, None])


def test_bytes_by_hand() -> None:
    kept = 16 * np.array([1000 + 500 + 1500, 2000 + 500 + 1500, 3000 + 500 + 1500])
    expected = RUNTIME_BYTES + 1e6 + ALLOCATOR_FACTOR * kept + STATE_BYTES * 50
    assert np.allclose(step_bytes(table(), 16), expected)
    together = (
        RUNTIME_BYTES + 1e6 + ALLOCATOR_FACTOR * 16 * np.array([3000, 4500, 6000]) + STATE_BYTES * 50 * np.arange(1, 4)
    )
    assert np.allclose(step_bytes(table(), 16, together=True), together)
    assert (step_bytes(table(), 16, checkpointing=True) < step_bytes(table(), 16)).all()


def test_costs_never_fall_with_depth() -> None:
    rng = np.random.default_rng(0)
    odd = table(8, **{key: rng.random(8) * 1e4 for key in ("backward_flops", "activation_bytes", "input_bytes")})
    costs = fleet_costs(fleet(device(), device("b", reserved_bytes=1e6)), odd)
    for array in (costs.compute, costs.memory, costs.memory_together):
        assert (np.diff(array, axis=1) >= 0).all()
    assert (costs.memory_together >= costs.memory - 1e-6).all()


def test_a_profile_replaces_the_model_of_the_device() -> None:
    costs = fleet_costs(measured_fleet(profile(), memory_bytes=1e9, reserved_bytes=1e8), table())
    assert np.allclose(costs.compute[0], np.array([1.0, 2.0, 3.0]) * 64 / 16)
    assert np.allclose(costs.memory[0], [6e8, 8e8, 2.1e9])
    assert costs.fits[0].tolist() == [True, True, False]


def test_a_profile_reads_merged_blocks_at_their_deepest_layer() -> None:
    costs = fleet_costs(measured_fleet(profile()), table().merged([2, 1]))
    assert np.allclose(costs.compute[0], np.array([2.0, 3.0]) * 4)
    assert np.allclose(costs.bits, [2 * 1600, 1600])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_digest": "zzz"}, "was measured on toy"),
        ({"step_seconds": [1.0], "peak_bytes": [1.0]}, "has 1 depths, the model has 3 layers"),
        ({"batch_sequences": 100}, "less than the 800 tokens of one step"),
    ],
)
def test_profiles_that_cannot_be_used(changes, part) -> None:
    with pytest.raises(InputError, match="'a'") as caught:
        fleet_costs(measured_fleet(profile(**changes)), table())
    assert part in str(caught.value)


def test_a_profile_that_falls_with_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="must not fall"):
        profile(step_seconds=[2.0, 1.0, 3.0])


def test_merging_keeps_the_sums() -> None:
    whole, merged = table(5), table(5).merged([2, 2, 1])
    assert len(merged) == 3
    assert merged.layers[0] == ("layer.4", "layer.3")
    assert merged.deepest_layer.tolist() == [2, 4, 5]
    for key in ("parameters", "forward_flops", "backward_flops", "activation_bytes", "payload_values"):
        assert getattr(merged, key).sum() == getattr(whole, key).sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_balanced_blocks_against_every_cut(weights, data) -> None:
    blocks = data.draw(st.integers(1, len(weights)))
    sizes = balanced_sizes(np.array(weights, dtype=float), blocks)
    assert len(sizes) == blocks
    assert sum(sizes) == len(weights)
    assert min(sizes) >= 1

    def sums(cuts) -> list[float]:
        edges = [0, *cuts, len(weights)]
        return [sum(weights[a:b]) for a, b in pairwise(edges)]

    every = [sums(cuts) for cuts in combinations(range(1, len(weights)), blocks - 1)]
    got = sums(np.cumsum(sizes)[:-1].tolist())
    least = min(max(cut) for cut in every)
    assert max(got) == least
    assert sum(x * x for x in got) == min(sum(x * x for x in cut) for cut in every if max(cut) == least)


@pytest.mark.parametrize("blocks", [0, -1, 4])
def test_blocks_that_cannot_be(blocks) -> None:
    with pytest.raises(InputError, match="the model has 3 layers"):
        balanced_sizes(np.ones(3), blocks)
