import numpy as np
import pytest
from fleets import best_several, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from taskedge.planning import InfeasiblePlan, ShannonLink, allocate_several, finish_seconds, solve_exactly
from taskedge.planning.problem import check_instance
from taskedge.planning.solvers.several import _Search


def few_devices(rng, devices, blocks):
    compute, _, bits, link, bandwidth = draw(rng, max(devices, blocks), blocks)
    return compute[:devices], np.ones((devices, blocks), bool), bits, ShannonLink(link.snr_hz[:devices]), bandwidth


@pytest.mark.slow
def test_near_brute_force():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(8):
        case = few_devices(rng, int(rng.integers(1, 4)), int(rng.integers(2, 6)))
        plan, best = allocate_several(*case), best_several(*case)
        assert plan.lower_bound <= best * (1 + 1e-9)
        assert plan.latency >= best * (1 - 1e-9)
        ratios.append(plan.latency / best)
    assert np.mean(ratios) <= 1.01


def test_a_device_computes_to_its_deepest_block_and_sends_the_sum():
    compute = np.array([[1.0, 2.0, 3.0]])
    link = ShannonLink(np.array([4.0]))
    plan = allocate_several(compute, np.ones((1, 3), bool), [1.0, 2.0, 5.0], link, 4.0)
    assert plan.latency == pytest.approx(3 + 8 / 4)
    assert plan.bandwidth_of_block == pytest.approx([0.5, 1.0, 2.5])
    assert finish_seconds(plan, compute, [1.0, 2.0, 5.0], link) == pytest.approx(5.0)


def test_respects_what_fits():
    rng = np.random.default_rng(1)
    compute, fits, bits, link, bandwidth = few_devices(rng, 4, 9)
    fits = np.arange(9) < np.array([9, 3, 3, 6])[:, None]
    plan = allocate_several(compute, fits, bits, link, bandwidth)
    assert fits[plan.device_of_block, np.arange(9)].all()
    assert plan.bandwidth_of_block.sum() <= bandwidth * (1 + 1e-12)
    with pytest.raises(InfeasiblePlan, match="block 8"):
        allocate_several(compute, fits & (np.arange(9) < 8), bits, link, bandwidth)


def test_with_many_devices_it_may_beat_one_to_one_but_not_its_bound():
    case = draw(np.random.default_rng(2), 12, 5)
    plan = allocate_several(*case)
    assert plan.lower_bound <= plan.latency <= solve_exactly(*case).latency * 1.05


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(devices=st.integers(1, 3), blocks=st.integers(1, 5), data=st.data())
def test_numerical_edges(devices, blocks, data):
    size = st.sampled_from([0.0, 1e-9, 1.0, 1e9])
    compute = np.array(data.draw(st.lists(size, min_size=devices * blocks, max_size=devices * blocks)))
    compute = np.sort(compute.reshape(devices, blocks), axis=1)
    bits = np.array(data.draw(st.lists(size, min_size=blocks, max_size=blocks)))
    snr = np.array(data.draw(st.lists(st.sampled_from([1e-3, 1.0, 1e9]), min_size=devices, max_size=devices)))
    plan = allocate_several(compute, np.ones((devices, blocks), bool), bits, ShannonLink(snr), 1.0)
    assert np.isfinite([plan.latency, plan.lower_bound, *plan.bandwidth_of_block]).all()
    assert plan.lower_bound <= plan.latency


def test_needs_of_several_shapes_are_those_of_each():
    case = few_devices(np.random.default_rng(4), 3, 5)
    search = _Search(check_instance(*case))
    seconds, payload = search.loads(np.array([0, 1, 2, 0, 1]))
    every = np.arange(3)
    uploads = [(seconds, payload, every), (seconds[:, None], payload[:, None] + search.bits, every[:, None])]
    together = search._needs(2.0, *uploads)
    for part, upload in zip(together, uploads, strict=True):
        assert part.tolist() == search._need(2.0, *upload).tolist()


def test_the_same_seed_is_the_same_plan_and_steps():
    case = few_devices(np.random.default_rng(5), 3, 7)
    first, second = allocate_several(*case, seed=3), allocate_several(*case, seed=3)
    assert first.to_dict() == second.to_dict()
