"""Random choices follow from the seed and their place in the run."""

import pytest
from accelerate.data_loader import SeedableRandomSampler

from taskedge.training.data_order import derive_seed, epoch_order, random_order


def test_derived_seeds_stay_the_same():
    """Runs are resumed, and devices agree, across versions and machines."""
    assert derive_seed(0, 3) == 1250764165497991716
    assert derive_seed(5, "rows", 2) == 3968611029008841538
    seeds = {derive_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("num_rows", [1, 2, 26])
def test_the_order_of_an_epoch_is_that_of_accelerate(num_rows):
    sampler = SeedableRandomSampler(range(num_rows), data_seed=5)
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        assert epoch_order(num_rows, 5, epoch) == list(sampler)


def test_a_random_order_has_every_row():
    assert sorted(random_order(26, 1)) == list(range(26))
    assert random_order(26, 1) == random_order(26, 1) != random_order(26, 2)
