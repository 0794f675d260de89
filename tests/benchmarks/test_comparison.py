"""What is said of two methods follows from their runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.accuracy import comparison
from benchmarks.accuracy.comparison import Chosen, choose, difference


def run(method: str, lr: float, seed: int, validation: float, test: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "lr": lr, "seed": seed, "validation": validation, "test": test} | more


def chosen(tests: list[float], right: list[np.ndarray] | None = None) -> Chosen:
    """Runs of seeds 0, 1, ... with these test accuracies."""
    more = [{} if right is None else {"test_hits": np.packbits(hits).tobytes().hex()} for hits in right or tests]
    return Chosen("m", 0.1, [run("m", 0.1, seed, 0.5, test, **more[seed]) for seed, test in enumerate(tests)])


def test_each_method_is_taken_at_the_rate_that_validates_best_on_seed_0() -> None:
    runs = [
        run("a", 0.003, 0, 0.70, 0.99),
        run("a", 0.01, 1, 0.10, 0.81, columns_mean=102.0),
        run("a", 0.03, 0, 0.80, 0.99),
        run("a", 0.01, 0, 0.80, 0.75, columns_mean=100.0),
        run("b", 0.01, 0, 0.60, 0.65),
        run("c", 0.01, 1, 0.60, 0.65),
    ]
    a, b = choose(runs)  # c has no run on seed 0
    assert (a.method, a.lr, a.tests, a.average("columns_mean")) == ("a", 0.01, [0.75, 0.81], 101)
    assert (b.lr, b.average("columns_mean")) == (0.01, None)


def test_on_one_task_without_rows_the_interval_is_that_of_the_paired_t_test() -> None:
    one, other = [0.80, 0.83, 0.79, 0.84], [0.78, 0.80, 0.80, 0.81]
    found = difference([chosen(one)], [chosen(other)])
    assert found is not None
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(expected.low)
    assert found.mean + found.half == pytest.approx(expected.high)


def test_pairs_are_those_of_the_same_seed() -> None:
    one, other = chosen([0.80, 0.90]), chosen([0.70, 0.80])
    backwards = Chosen("m", 0.1, other.runs[::-1])
    found = difference([one], [backwards])
    assert found is not None
    assert (found.mean, found.half) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    assert found.is_clear


def test_a_single_shared_seed_gives_no_interval() -> None:
    assert difference([chosen([0.8])], [chosen([0.7, 0.7])]) is None


def test_tasks_weigh_the_same() -> None:
    found = difference([chosen([0.9, 0.9]), chosen([0.5, 0.5])], [chosen([0.8, 0.8]), chosen([0.7, 0.7])])
    assert found is not None
    assert found.mean == pytest.approx(-0.05)


def test_test_rows_are_a_sample_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "TEST_ROWS", 500)
    draw = np.random.default_rng(0)
    right = draw.random(500) < 0.8
    worse = right & (draw.random(500) < 0.95)
    ones, others = [right, right], [worse, worse]
    found = difference(
        [chosen([hits.mean() for hits in ones], ones)], [chosen([hits.mean() for hits in others], others)]
    )
    assert found is not None
    gaps = right.astype(float) - worse  # both seeds agree: all that is uncertain is which rows were drawn
    assert found.mean == pytest.approx(gaps.mean())
    assert found.half == pytest.approx(stats.t.ppf(0.975, 1) * gaps.std(ddof=1) / 500**0.5)
