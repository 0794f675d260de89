"""Each form gets the support and the callbacks that it needs."""

from __future__ import annotations

import pytest
import tiny
from tiny_task import tune_config

from taskedge.training.dash_callback import DashStart
from taskedge.training.form_callbacks import form_callbacks, form_support
from taskedge.training.layer_gates import LayerGatePenalty


@pytest.fixture
def config_of(task, tmp_path):
    def make(**changes):
        return tune_config(task, tmp_path / "task.safetensors", **changes)

    return make


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"form": "sparse"}, []),
        ({"form": "lora", "budget": None, "dash": True}, [DashStart]),
        ({"form": "taps", "budget": None}, [LayerGatePenalty]),
        ({"form": "sparse_taps"}, [LayerGatePenalty]),
    ],
)
def test_callbacks(config_of, changes, expected):
    config = _without(config_of, changes)
    assert [type(callback) for callback in form_callbacks(config, lambda _: None)] == expected


def test_supports(config_of):
    assert form_support(tiny.bert(), config_of(form="sparse_taps")) is None
    support = form_support(tiny.bert(), _without(config_of, {"form": "taps", "budget": None, "depth": 1}))
    assert (support.rule, len(support.settings["whole_layers"])) == ("taps", 6)
    filtered = form_support(tiny.bert(), _without(config_of, {"form": "filtered", "budget": None, "rank": 2}))
    assert (filtered.rule, set(filtered.low_rank.values())) == ("filtered", {2})


def _without(config_of, changes):
    """Return the settings; a budget of None is one that was not given."""
    from taskedge.training.tune_config import TuneConfig

    if "budget" not in changes:
        return config_of(**changes)
    given = config_of()
    kept = {name: getattr(given, name) for name in given.model_fields_set if name != "budget"}
    return TuneConfig(**{**kept, **{name: value for name, value in changes.items() if name != "budget"}})
