"""Settings of the data and the base."""

from __future__ import annotations

from taskedge.training.config import load_config
from taskedge.training.data_settings import DataSettings
from taskedge.training.tune_config import TuneConfig


def test_one_text_column_needs_no_list():
    assert DataSettings(model="m", train="t.csv", text="title").text == ["title"]


def test_the_former_name_of_the_weight_storage_is_read():
    assert load_config(TuneConfig, {"model": "m", "train": "t.csv", "weight_storage": "loaded"}).weight_storage == (
        "resident"
    )


def test_settings_of_the_data_come_first():
    assert list(TuneConfig.model_fields)[: len(DataSettings.model_fields)] == list(DataSettings.model_fields)
