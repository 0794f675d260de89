"""The search keeps the best of each rung, leaves out what diverges, and resumes to the same file."""

from __future__ import annotations

import json
import signal

import pytest
from killed_runs import killed_at
from tiny_task import forked, snapshot, tune_config, tuning

from taskedge.delta.file import load
from taskedge.errors import InputError, TrainingDiverged
from taskedge.training import rate_search
from taskedge.training.rate_search import search_rates
from taskedge.training.search_budget import SearchBudget
from taskedge.training.tune import tune


def config(task, out, **more):
    return tune_config(task, out, **{"validation": "25%", "epochs": 1} | more)


def test_the_best_of_a_rung_go_on_and_the_last_is_that_of_a_run_of_its_own(task, tmp_path):
    said = []
    trials = search_rates(
        config(task, tmp_path / "o"), [0.01, 0.3], [1e-4, 0.03], eta=2, rungs=2, progress=False, log=said.append
    )
    first = [one for one in trials if one["rung"] == 0]
    last = [one for one in trials if one["rung"] == 1]
    assert (len(first), len(last)) == (4, 2)
    best = sorted(first, key=lambda one: one["held_out_loss"])[:2]
    assert {(one["lr"], one["head_lr"]) for one in best} == {(one["lr"], one["head_lr"]) for one in last}
    assert {one["epochs"] for one in first} == {0.5}
    assert trials[0] == min(last, key=lambda one: one["held_out_loss"])
    alone = config(task, tmp_path / "a", lr=trials[0]["lr"], head_lr=trials[0]["head_lr"], eval_every=10**9)
    tune(alone, progress=False, log=str)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "o").read_bytes()
    assert snapshot(tmp_path).keys() == {"a", "o"}
    assert said[0] == "rung 1 of 2: 4 pairs of rates, 0.5 epochs each"


def test_a_pair_that_diverges_is_left_out(task, tmp_path):
    trials = search_rates(config(task, tmp_path / "o"), [0.01, 1e30], [0.03], eta=2, progress=False, log=str)
    assert [one["held_out_loss"] is None for one in trials] == [False, False, True]
    assert load(tmp_path / "o").provenance.training["lr"] == 0.01
    with pytest.raises(TrainingDiverged, match="every pair of rates diverged: give lower --rates"):
        search_rates(config(task, tmp_path / "p"), [1e30], [0.03], progress=False, log=str)


def test_a_budget_of_steps_is_kept_and_the_last_rung_is_reached(task, tmp_path):
    """72 rows in batches of 8: a pair takes 5 steps in the first rung and 9 in the last."""
    said = []
    trials = search_rates(
        config(task, tmp_path / "o"), [0.01, 0.1, 0.3], [0.03], eta=2, budget=SearchBudget(steps=20), progress=False,
        log=said.append,
    )  # fmt: skip
    assert [(one["rung"], one["steps"]) for one in trials] == [(1, 9), (0, 5), (0, 5)]
    assert sum(one["steps"] for one in trials) <= 20
    assert "budget of 20 steps: 1 of 3 pairs are not tried in this rung" in said
    assert load(tmp_path / "o").provenance.training["steps"] == 9
    with pytest.raises(InputError, match="one pair of rates takes 14 steps in 2 rungs"):
        search_rates(config(task, tmp_path / "p"), [0.01], [0.03], eta=2, budget=SearchBudget(steps=13), log=str)


def test_a_budget_of_time_ends_with_the_best_so_far(task, tmp_path):
    said = []
    budget = SearchBudget(seconds=1e-6)
    trials = search_rates(
        config(task, tmp_path / "o"), [0.01, 0.1], [0.03], eta=2, budget=budget, progress=False, log=said.append
    )
    assert [one["rung"] for one in trials] == [0]
    assert said[-1] == "the budget ended before rung 2: the best run of 0.5 epochs is written"
    assert load(tmp_path / "o").provenance.training["lr"] == 0.01
    assert trials[0]["seconds"] > 0


@pytest.mark.slow
def test_it_resumes_to_the_same_file(task, tmp_path):
    arguments = ["search", *tuning(task, "--validation", "25%")[1:], "--rates", "0.01,0.3", "--head-rates", "0.03"]
    rate = arguments.index("--lr")
    arguments = [*arguments[:rate], *arguments[rate + 2 :], "--eta", "2"]
    assert forked([*arguments, "--out", str(tmp_path / "whole")]).code == 0
    arguments += ["--out", str(tmp_path / "o")]
    assert forked(arguments, killed_at(rate_search, "tune", call=2, after=True)).code == -signal.SIGKILL
    assert len(json.loads((tmp_path / "o.search" / "search.json").read_text())["trials"]) == 1
    refused = forked(arguments)
    assert "holds an interrupted search: continue it with --resume" in refused.err
    other = forked([*arguments, "--resume", "--rates", "0.5"])
    assert "the interrupted search had other settings" in other.err
    ended = forked([*arguments, "--resume"])
    assert ended.code == 0, ended.err
    assert "held-out loss" in ended.out
    assert (tmp_path / "o").read_bytes() == (tmp_path / "whole").read_bytes()


def test_it_needs_held_out_data(task, tmp_path):
    with pytest.raises(InputError, match="a search needs held-out data"):
        search_rates(tune_config(task, tmp_path / "o"), [0.1], [0.1], progress=False, log=str)
