"""The outcome of a run becomes JSON with every value under its own name."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from taskedge.training.tune import as_json
from taskedge.training.tune_result import TuneResult


def test_every_value_is_in_the_json():
    numbers = {field.name: index for index, field in enumerate(fields(TuneResult))}
    result = TuneResult(**(numbers | {"out": Path("a/b.safetensors"), "quality": {"accuracy": 0.5}}))
    values = json.loads(json.dumps(as_json(result)))
    assert values == numbers | {"out": "a/b.safetensors", "quality": {"accuracy": 0.5}}
