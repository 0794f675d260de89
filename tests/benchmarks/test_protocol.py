"""Every method of the comparison gets the same trials, on the same ladders, with the same steps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.accuracy.protocol import HEAD_LR, LADDER, SEEDS, TRIALS, lower, next_pair, score, still_falls
from benchmarks.record import results
from benchmarks.report import report_compare

RUNS = report_compare.read(results("accuracy") / "compare")
rates = st.sampled_from(LADDER)


def walk(value: Any, body_lr: float | None, trials: int = TRIALS) -> dict[Any, float]:
    tried: dict[Any, float] = {}
    for _ in range(trials):
        pair = next_pair(tried, body_lr)
        assert pair not in tried
        tried[pair] = value(pair)
    return tried


@given(rates, rates, rates)
def test_the_search_finds_the_peak_of_a_smooth_hill_and_tries_its_neighbors(
    body: float, head: float, start: float
) -> None:
    def hill(pair: Any) -> float:
        return -abs(math.log(pair[0] / body)) - abs(math.log(pair[1] / head))

    tried = walk(hill, start, trials=40)
    assert max(tried, key=lambda pair: tried[pair]) == (body, head)
    assert all(pair in tried for pair in report_compare.neighbors(body, head))


def test_the_first_trials_are_the_start_and_its_neighbors() -> None:
    tried = walk(lambda pair: float(pair == (1e-3, HEAD_LR)), 1e-3, trials=5)
    assert next(iter(tried)) == (1e-3, HEAD_LR)
    assert set(tried) == {(1e-3, HEAD_LR), *report_compare.neighbors(1e-3, HEAD_LR)}


def test_a_method_without_a_body_searches_the_ladder_of_the_head_with_as_many_trials() -> None:
    tried = walk(lambda pair: -abs(math.log(pair[1] / 1e-1)), None)
    assert len(tried) == TRIALS
    assert {body for body, _ in tried} == {None}
    assert {3e-2, 1e-1, 3e-1} <= {head for _, head in tried}


def test_a_trial_is_judged_by_accuracy_then_by_loss_and_a_diverged_one_loses() -> None:
    better = score({"validation": 0.81, "validation_loss": 0.9})
    assert better > score({"validation": 0.80, "validation_loss": 0.2})
    assert score({"validation": 0.8, "validation_loss": 0.4}) > score({"validation": 0.8, "validation_loss": 0.5})
    assert score({"validation": 0.0, "validation_loss": None}) == -math.inf


def test_lower_is_the_next_rung_and_ends_at_the_bottom() -> None:
    assert (lower(3e-3), lower(LADDER[0]), lower(None)) == (1e-3, LADDER[0], None)


def test_a_falling_loss_is_noticed() -> None:
    falling = [{"loss": 1.0 / step} for step in range(1, 21)]
    assert still_falls(falling)
    assert not still_falls([{"loss": 0.5}] * 20)
    assert not still_falls([{"loss": 0.5}])


@pytest.mark.parametrize("task", RUNS)
def test_results_give_every_method_the_same_trials_and_steps(task: str) -> None:
    found = report_compare.compared(RUNS[task])
    for method in found.values():
        pairs = [(run["body_lr"], run["head_lr"]) for run in method.trials]
        assert len(set(pairs)) == TRIALS, method.method
        assert {head for _, head in pairs} <= set(LADDER)
        assert {body for body, _ in pairs} <= {None, *LADDER}
        assert {run["seed"] for run in method.finals["short"]} == set(SEEDS)
    for one, other in itertools.combinations(found.values(), 2):
        steps = [{run["steps"] for run in (*method.trials, *method.finals["short"])} for method in (one, other)]
        finished = [own - {0} for own in steps]  # 0: diverged
        assert finished[0] == finished[1], (one.method, other.method)


@pytest.mark.parametrize("task", RUNS)
def test_results_of_the_final_seeds_repeat_those_of_the_search(task: str) -> None:
    by_key = {}
    for run in RUNS[task]:
        key = tuple(run[name] for name in ("method", "variant", "budget", "body_lr", "head_lr", "seed"))
        by_key.setdefault(key, []).append(run)
    machines = [[str(run["machine"]) for run in runs] for runs in by_key.values()]
    repeated = [runs for runs, on in zip(by_key.values(), machines, strict=True) if len(runs) > 1 and len(set(on)) == 1]
    for runs in repeated:
        assert len({run["validation_loss"] for run in runs}) == 1, runs[0]["method"]
