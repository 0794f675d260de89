"""No bound is above the optimum, and prices make it tighter than devices that serve all blocks at once."""

import numpy as np
import pytest
from fleets import best_several, draw, draw_any

from taskedge.planning import FixedRateLink, MixedLink, solve_exactly
from taskedge.planning.lower_bounds import _Prices, bound_of_all_plans, every_pair, priced_bound, shared_bound
from taskedge.planning.problem import check_instance


@pytest.mark.parametrize("kind", ["radio", "wired", "mixed"])
def test_bounds_are_below_the_optimum(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        devices, blocks = int(rng.integers(2, 6)), int(rng.integers(2, 7))
        (compute, fits, bits, link, bandwidth), _ = draw_any(rng, devices, blocks)
        fits[0] = True
        cable = FixedRateLink(10 ** rng.uniform(5, 8, devices))
        if kind != "radio":
            link = cable if kind == "wired" else MixedLink(link, cable, rng.random(devices) < 0.5)
        case = compute, fits, bits, link, bandwidth
        best = solve_exactly(*case).latency
        instance = check_instance(*case)
        shared = shared_bound(instance, every_pair(instance), best)
        assert 0 < shared <= priced_bound(instance, shared, best) <= best * (1 + 1e-9)


def test_the_bound_is_below_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(2):
        case = draw(rng, 3, 3)
        best = best_several(*case)
        assert bound_of_all_plans(check_instance(*case), 2 * best) <= best * (1 + 1e-9)


def test_prices_count_that_a_device_sends_its_blocks_one_after_the_other():
    """Twelve equal blocks on three equal wired devices: four each. Without prices, a device would send all at once."""
    instance = check_instance(np.zeros((3, 12)), np.ones((3, 12), bool), np.ones(12), FixedRateLink(np.ones(3)), 1.0)
    assert shared_bound(instance, every_pair(instance), 4.0) == pytest.approx(1.0, rel=1e-5)
    assert bound_of_all_plans(instance, 4.0) == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_d_is_above_its_definition(seed):
    case, _ = draw_any(np.random.default_rng(seed), 4, 3)
    prices = _Prices(check_instance(*case))
    link, bandwidth = case[3], case[4]
    hertz = np.concatenate([[0.0], np.geomspace(1e-9, 1, 4001)]) * bandwidth
    rate = link.rate(np.arange(4)[:, None], hertz)
    for factor in (1e-3, 0.1, 1.0, 10.0, 1e3):
        y = factor * bandwidth / rate[:, -1]
        value, _ = prices.conjugate(y)
        true = (y[:, None] * rate - hertz).max(axis=1)
        assert (value >= true * (1 - 1e-12)).all()
        assert value == pytest.approx(true, rel=0.05, abs=1e-3 * bandwidth)
