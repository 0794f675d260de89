"""Trained values of trials, kept for the test rows."""

import pytest
import torch
from torch import nn

from benchmarks.accuracy.kept_runs import KeptRuns


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path) -> KeptRuns:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return KeptRuns("a task")


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    return model


def test_restores_what_trained_and_nothing_else(kept: KeptRuns) -> None:
    trained, fresh = _model(0), _model(1)
    frozen = fresh[0].weight.clone()
    kept.keep({"method": "a", "seed": 0}, trained)

    kept.restore({"seed": 0, "method": "a"}, fresh)

    assert torch.equal(fresh[1].weight, trained[1].weight)
    assert torch.equal(fresh[0].weight, frozen)


def test_runs_are_apart(kept: KeptRuns) -> None:
    kept.keep({"method": "a", "seed": 0}, _model(0))
    assert kept.has({"method": "a", "seed": 0})
    assert not kept.has({"method": "a", "seed": 1})
    assert not KeptRuns("another task").has({"method": "a", "seed": 0})


def test_forgets_one_method(kept: KeptRuns) -> None:
    for method in ("a", "b"):
        kept.keep({"method": method, "seed": 0}, _model(0))

    kept.forget("a")

    assert not kept.has({"method": "a", "seed": 0})
    assert kept.has({"method": "b", "seed": 0})


def test_a_model_of_another_run_is_refused(kept: KeptRuns) -> None:
    kept.keep({"method": "a"}, _model(0))
    with pytest.raises(AssertionError, match="made ready for another run"):
        kept.restore({"method": "a"}, _model(0).requires_grad_(True))
