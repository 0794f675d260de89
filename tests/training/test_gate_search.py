"""The penalty is searched until the expected share suits the budget, and finished tries are not repeated."""

from __future__ import annotations

import json
import math

import pytest
import torch

from taskedge.selection.support import LayerSupport, Support
from taskedge.training.gate_search import next_penalty, search_penalty
from taskedge.training.gates import GateConfig


def finder(share_of, calls):
    """Return a function like that of gates, whose share falls with the penalty."""

    def find(gates, folder):
        calls.append((gates.penalty, folder.name))
        linear = LayerSupport.from_flat((2, 2), torch.tensor([1]), "a")
        share = share_of(gates.penalty)
        return Support({"a": linear}, 1000, settings={"expected_share": share, "penalty": gates.penalty})

    return find


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.5, 30.0])
def test_a_share_that_falls_with_the_penalty_is_met(tmp_path, scale):
    calls, lines = [], []
    find = finder(lambda penalty: scale / penalty, calls)
    support = search_penalty(find, GateConfig(penalty=10.0), 1e-3, 12, tmp_path, lines.append)
    assert 1e-3 <= support.settings["expected_share"] <= 2e-3
    assert len(calls) == len(lines) < 12
    assert len({penalty for penalty, _ in calls}) == len(calls)
    assert support.settings["penalty"] == calls[-1][0]


def test_an_interrupted_search_repeats_no_finished_try(tmp_path):
    calls = []
    find = finder(lambda penalty: 0.01 / penalty, calls)
    gates = GateConfig(penalty=100.0)

    def stopped(gates, folder):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(gates, folder)

    with pytest.raises(KeyboardInterrupt):
        search_penalty(stopped, gates, 1e-3, 9, tmp_path)
    resumed = search_penalty(find, gates, 1e-3, 9, tmp_path)
    fresh = []
    whole = search_penalty(finder(lambda penalty: 0.01 / penalty, fresh), gates, 1e-3, 9, tmp_path / "whole")
    assert calls == fresh
    assert resumed.settings == whole.settings
    assert [penalty for penalty, _ in json.loads((tmp_path / "tries.json").read_text())] == [p for p, _ in calls]


def test_a_share_that_cannot_be_met_gives_the_nearest_and_says_so(tmp_path):
    lines = []
    find = finder(lambda penalty: 0.5 if penalty < 100 else 1e-6, [])
    support = search_penalty(find, GateConfig(penalty=10.0), 1e-3, 3, tmp_path, lines.append)
    assert support.settings["expected_share"] == 0.5
    assert "none of 3 penalties gave 1 to 2 times the budget: taking" in lines[-1]
    assert "50.000%" in lines[-1]


def test_one_try_is_no_search(tmp_path):
    calls = []
    support = search_penalty(finder(lambda _: 0.9, calls), GateConfig(), 1e-3, 1, tmp_path / "gates")
    assert support.settings["expected_share"] == 0.9
    assert calls == [(GateConfig().penalty, "gates")]
    assert not (tmp_path / "gates").exists()


def test_next_penalties():
    assert next_penalty([], 0.01, 7.0) == 7.0
    assert next_penalty([(7.0, 0.5)], 0.01, 7.0) == 28.0
    assert next_penalty([(7.0, 0.001)], 0.01, 7.0) == 1.75
    assert next_penalty([(7.0, 0.5), (28.0, 0.001)], 0.01, 7.0) == math.sqrt(7.0 * 28.0)
