"""Options and output that ``eval`` and ``predict`` share."""

from __future__ import annotations

from typing import get_args

import click
import pytest

from taskedge.backbone.storage import WEIGHT_STORAGE
from taskedge.cli.eval import command as eval_command
from taskedge.cli.inference_options import measures_text
from taskedge.cli.predict import command as predict_command
from taskedge.training.trainer_config import DEFAULTS
from taskedge.training.tune_config import TuneConfig


@pytest.mark.parametrize("command", [eval_command, predict_command], ids=["eval", "predict"])
def test_both_verbs_have_the_options(command):
    options = {option.name: option for option in command.params}
    names = {"delta", "data", "text", "prompt", "image", "weight_storage", "model", "max_new_tokens", "batch_size"}
    assert names | {"force"} <= options.keys()
    assert options["data"].required
    assert options["batch_size"].default == DEFAULTS.batch_size
    choices = options["weight_storage"].type
    assert isinstance(choices, click.Choice)
    assert tuple(choices.choices) == WEIGHT_STORAGE == get_args(TuneConfig.model_fields["weight_storage"].annotation)


def test_measures_as_text():
    measures = {"rows": 7, "accuracy": 0.5, "macro_f1": 1 / 3, "exact_match": 1.0, "pearson": None}
    assert measures_text(measures) == "accuracy 0.5000, macro F1 0.3333, exact match 1.0000, Pearson r undefined"
