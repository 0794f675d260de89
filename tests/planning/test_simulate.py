from __future__ import annotations

import numpy as np
import pytest
from shapes import device, fleet, table

from taskedge.errors import InputError
from taskedge.planning.fleet_costs import fleet_costs
from taskedge.planning.plan import try_solver
from taskedge.planning.simulate import Simulation, draw_rounds, simulate, summarize

ROWS = [
    *(device(f"d{n}", flops_per_second=1e6 * (n + 1), gain_db=-90.0 - 5 * n) for n in range(4)),
    device("wired", gain_db=None, transmit_watts=None, wired_bits_per_second=1e6),
]


def run(seed: int = 0, rounds: int = 20, solvers=("exact", "random", "equal"), **options) -> Simulation:
    loaded = fleet(*ROWS)
    costs = fleet_costs(loaded, table())
    return simulate(loaded, costs, "toy", solvers, rounds, np.random.default_rng(seed), seed=seed, **options)


@pytest.mark.slow
def test_a_seed_gives_one_result() -> None:
    assert run(3, churn=0.2, drift_db=3.0) == run(3, churn=0.2, drift_db=3.0)
    assert run(3) != run(4)
    assert Simulation.model_validate_json(run(3).to_json()) == run(3)


@pytest.mark.slow
def test_solvers_see_the_same_rounds() -> None:
    both = run(1, solvers=("one-each", "exact"))
    assert both.latency_seconds["exact"] == run(1, solvers=("exact",)).latency_seconds["exact"]
    for each, exact in zip(both.latency_seconds["one-each"], both.latency_seconds["exact"], strict=True):
        assert exact <= each * (1 + 1e-9)


def test_solvers_that_stand_for_the_same_one_plan_once(monkeypatch) -> None:
    """With fewer devices than blocks, one-each, match and exact are all ``exact``."""
    names = []

    def solve(name, *args, **kwargs):
        names.append(name)
        return try_solver(name, *args, **kwargs)

    monkeypatch.setattr("taskedge.planning.simulate.try_solver", solve)
    loaded = fleet(*ROWS[:2])
    costs = fleet_costs(loaded, table())
    rng = np.random.default_rng(0)
    result = simulate(loaded, costs, "toy", ["one-each", "match", "exact", "equal"], 2, rng)
    assert names == ["exact", "equal"] * 2
    assert result.latency_seconds["one-each"] == result.latency_seconds["match"] == result.latency_seconds["exact"]


@pytest.mark.slow
def test_without_fading_every_round_is_the_plan() -> None:
    still = run(0, fading="none", solvers=("exact",)).latency_seconds["exact"]
    assert len(set(still)) == 1


def test_fading_and_churn_have_their_rates() -> None:
    loaded = fleet(*ROWS)
    draws = list(draw_rounds(loaded, 4000, np.random.default_rng(0), "rayleigh", 0.1, 0.0))
    gains = np.array([gain for _, gain in draws])[:, :4] / loaded.gains()[:4]
    assert gains.mean() == pytest.approx(1.0, rel=0.03)
    assert gains.std() == pytest.approx(1.0, rel=0.05)
    present = np.mean([present for present, _ in draws])
    assert present == pytest.approx(0.5 / 0.6, rel=0.03)  # leaves with 0.1, returns with 0.5


def test_drift_is_slow_and_has_its_spread() -> None:
    loaded = fleet(*ROWS)
    draws = np.array([g for _, g in draw_rounds(loaded, 8000, np.random.default_rng(0), "none", 0.0, 4.0)])[:, :4]
    decibel = 10 * np.log10(draws / loaded.gains()[:4])
    assert decibel.std() == pytest.approx(4.0, rel=0.1)
    assert np.corrcoef(decibel[1:, 0], decibel[:-1, 0])[0, 1] == pytest.approx(0.9, abs=0.03)


def test_everybody_away_is_a_round_without_a_plan() -> None:
    result = run(0, rounds=6, churn=1.0)
    assert result.devices_present[1] == 0
    assert result.latency_seconds["exact"][1] is None
    assert result.summary["exact"].rounds_without_plan >= 1


def test_summary_by_hand() -> None:
    row = summarize([2.0, None, 4.0], [1.0, 1.0, 2.0])
    assert (row.mean_seconds, row.worst_seconds, row.rounds_without_plan) == (3.0, 4.0, 1)
    assert row.saved_ratio == pytest.approx(0.5)
    assert summarize([None], [None]).mean_seconds is None


def test_no_rounds() -> None:
    with pytest.raises(InputError, match="at least 1"):
        run(rounds=0)
