"""Settings of the training: the rate is that of the form."""

from __future__ import annotations

import pytest

from taskedge.training.config import load_config
from taskedge.training.trainer_config import TrainerConfig
from taskedge.training.training_settings import LEARNING_RATES
from taskedge.training.tune_config import TuneConfig

NEEDED = {"model": "m", "train": "t.csv", "text": ["text"], "label": "label"}


@pytest.mark.parametrize("form", LEARNING_RATES)
def test_the_learning_rate_is_that_of_the_form_unless_given(tmp_path, form):
    config = tmp_path / "run.toml"
    config.write_text(f'form = "{form}"\n')
    assert load_config(TuneConfig, NEEDED, config).trainer_config().lr == LEARNING_RATES[form]
    assert load_config(TuneConfig, {**NEEDED, "lr": 0.125}, config).trainer_config().lr == 0.125
    assert LEARNING_RATES["sparse"] == TrainerConfig().lr
    assert f"{form} {LEARNING_RATES[form]:g}" in TuneConfig.model_fields["lr"].description


def test_rungs_that_go_together():
    given = {"depth": 2, "recompute": "inputs", "micro_batch": 8, "rotate": 4}
    settings = load_config(TuneConfig, {**NEEDED, **given})
    assert settings.select_kwargs()["depth"] == 2
    assert (
        settings.trainer_config().recompute,
        settings.trainer_config().micro_batch,
        settings.trainer_config().rotate,
    ) == ("inputs", 8, 4)
    assert settings.trainer_config().low_memory
    assert not TrainerConfig().low_memory
