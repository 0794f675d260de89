import numpy as np
import pytest
from fleets import draw

from taskedge.errors import UnknownName
from taskedge.planning import SOLVERS, InfeasiblePlan, ShannonLink, finish_seconds, solve_exactly, solve_one_each

ONE_TO_ONE = ["random", "greedy", "hungarian", "equal", "match", "dual-ascent", "one-each"]


def test_every_solver_is_found_by_name():
    assert {*ONE_TO_ONE, "exact", "several", "one-device", "fedavg"} <= set(SOLVERS)
    with pytest.raises(UnknownName, match="did you mean 'greedy'"):
        SOLVERS["gredy"]


def test_the_former_default_stands_for_the_present_one():
    assert SOLVERS["joint"] is SOLVERS["exact"]
    assert SOLVERS.current_name("joint") == "exact"
    assert "joint" not in list(SOLVERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_no_one_to_one_plan_beats_the_exact_one(name):
    rng = np.random.default_rng(0)
    for _ in range(5):
        case = draw(rng, 12, 5)
        plan = SOLVERS[name](*case)
        assert plan.latency >= solve_one_each(*case).latency * (1 - 1e-9)
        assert plan.latency >= solve_exactly(*case).latency * (1 - 1e-9)
        assert len(set(plan.device_of_block)) == 5
        assert case[1][plan.device_of_block, np.arange(5)].all()
        assert plan.bandwidth_of_block.sum() <= case[4] * (1 + 1e-12)
        assert finish_seconds(plan, case[0], case[2], case[3]).max() == pytest.approx(plan.latency)


def test_splitting_the_band_never_hurts_a_matching():
    case = draw(np.random.default_rng(1), 15, 6)
    assert SOLVERS["match"](*case).latency <= SOLVERS["equal"](*case).latency * (1 + 1e-12)


def test_random_depends_on_its_seed_only():
    case = draw(np.random.default_rng(2), 15, 6)
    plans = [SOLVERS["random"](*case, seed=seed).device_of_block.tolist() for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_random_and_greedy_get_out_of_dead_ends():
    fits = np.array([[True, True], [True, False]])
    fits = fits[:, ::-1]  # block 1 fits both, block 0 only device 0: dealing out block 1 first can block block 0
    args = np.array([[1.0, 1.0], [2.0, 2.0]]), fits, np.ones(2), ShannonLink(np.full(2, 1e6)), 1e3
    for name in ("random", "greedy"):
        assert SOLVERS[name](*args).device_of_block.tolist() == [0, 1]


def test_one_device_has_the_band_to_itself():
    compute = np.array([[1.0, 4.0], [1.0, 2.0]])
    plan = SOLVERS["one-device"](compute, np.ones((2, 2), bool), [3.0, 1.0], ShannonLink(np.array([8.0, 8.0])), 8.0)
    assert plan.latency == pytest.approx(2 + 4 / 8)  # snr/w = 1: one bit per second and Hz
    assert plan.device_of_block.tolist() == [1, 1]
    assert plan.bandwidth_of_block == pytest.approx([6.0, 2.0])
    assert [part.blocks for part in plan.assignments()] == [(0, 1)]


def test_fedavg_uses_every_device_that_holds_everything():
    fits = np.array([[True, True], [True, True], [True, False]])
    plan = SOLVERS["fedavg"](np.ones((3, 2)), fits, [1.0, 1.0], ShannonLink(np.full(3, 4.0)), 8.0)
    assert plan.latency == pytest.approx(1 + 2 / 4)
    assert [(part.device, part.blocks) for part in plan.assignments()] == [(0, (0, 1)), (1, (0, 1))]
    assert sum(part.bandwidth for part in plan.assignments()) == pytest.approx(8.0)


@pytest.mark.parametrize("name", ["one-device", "fedavg"])
def test_nobody_holds_everything(name):
    args = np.ones((2, 2)), np.eye(2, dtype=bool), np.ones(2), ShannonLink(np.ones(2)), 1.0
    with pytest.raises(InfeasiblePlan, match="all 2 blocks"):
        SOLVERS[name](*args)
    with pytest.raises(InfeasiblePlan, match="reach the server"):
        SOLVERS[name](np.ones((2, 2)), np.ones((2, 2), bool), np.ones(2), ShannonLink(np.zeros(2)), 1.0)


def test_plans_are_plain_figures():
    plan = SOLVERS["fedavg"](*draw(np.random.default_rng(3), 6, 4)).to_dict()
    assert isinstance(plan["latency_seconds"], float)
    assert plan["replicas"][0]["blocks"] == [0, 1, 2, 3]
