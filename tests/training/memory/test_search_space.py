"""The search space: given settings stay, and options that change the result need ``--allow``."""

from __future__ import annotations

import pytest

from taskedge.training.memory.options import (
    LOAD_OPTIONS,
    MEZO_OPTION,
    RECOMPUTE_OPTIONS,
    MemoryOption,
    allowable_options,
)
from taskedge.training.memory.search_space import (
    LoadConfig,
    StepConfig,
    iter_load_configs,
    iter_recompute_options,
    micro_batch_sizes,
)
from taskedge.training.tune_config import TuneConfig


def settings(**more) -> TuneConfig:
    return TuneConfig(**{"model": "m", "train": "t.csv", "batch_size": 8} | more)


def changes(found):
    return [load.changes for load in found]


def test_load_configs_begin_with_the_requested_one():
    found = changes(iter_load_configs(settings(), 12))
    assert found[0] == {}
    assert found[1:5] == [{"depth": 6}, {"depth": 3}, {"depth": 1}, {"optimizer": "mezo"}]
    bases = [{"dtype": "bf16"}, {"weight_storage": "int8"}, {"weight_storage": "int4"}]
    assert found[5:] == [*bases, *(base | {"depth": depth} for base in bases for depth in (6, 3, 1))]


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"depth": 2}, "depth"),
        ({"rotate": 4}, "depth"),
        ({"rule": "spt"}, "depth"),
        ({"dtype": "fp32"}, "dtype"),
        ({"weight_storage": "mmap"}, "weight_storage"),
        ({"rule": "gradient"}, "weight_storage"),
        ({"form": "lora"}, "weight_storage"),
        ({"optimizer": "mezo", "lr": 0.1}, "optimizer"),
    ],
)
def test_given_settings_are_not_overridden(given, gone):
    assert all(gone not in overrides for overrides in changes(iter_load_configs(settings(**given), 4)))


def test_a_model_without_blocks_has_its_batches_only():
    assert changes(iter_load_configs(settings(), 0)) == [
        {},
        {"optimizer": "mezo"},
        {"dtype": "bf16"},
        {"weight_storage": "int8"},
        {"weight_storage": "int4"},
    ]
    assert list(iter_recompute_options(settings(), 0)) == [()]


def test_recompute_options():
    assert list(iter_recompute_options(settings(), 4)) == [(), *((option,) for option in RECOMPUTE_OPTIONS)]
    assert list(iter_recompute_options(settings(recompute="blocks"), 4)) == [()]
    assert list(iter_recompute_options(settings(optimizer="mezo", lr=0.1), 4)) == [()]


def test_micro_batches_divide_the_batch_most_rows_first():
    assert micro_batch_sizes(settings(batch_size=12), ()) == [None, 12, 6, 4, 3, 2, 1]
    assert micro_batch_sizes(settings(batch_size=4), (RECOMPUTE_OPTIONS[0],)) == [
        None,
        2,
        1,
    ]  # which saves memory already
    assert micro_batch_sizes(settings(recompute="blocks"), ()) == [None, 4, 2, 1]
    assert micro_batch_sizes(settings(micro_batch=2), ()) == [2]
    for rows in micro_batch_sizes(settings(batch_size=12), ()):
        assert settings(batch_size=12, micro_batch=rows).trainer_config().passes_per_step >= 1


def test_a_step_config_has_settings_and_a_name():
    way = StepConfig((LOAD_OPTIONS[0], MemoryOption("depth", 3, "depth"), RECOMPUTE_OPTIONS[1]), 4)
    assert way.changes == {"dtype": "bf16", "depth": 3, "recompute": "blocks", "micro_batch": 4}
    assert way.name == "dtype bf16, depth 3, recompute blocks, micro-batch 4"
    assert StepConfig((), None).name == "as configured"
    assert StepConfig((MEZO_OPTION,), None).name == "mezo"


def test_options_that_change_the_result_must_be_allowed():
    exact, shallow = (
        StepConfig((RECOMPUTE_OPTIONS[0],), 2),
        StepConfig((MemoryOption("depth", 1, "depth"), RECOMPUTE_OPTIONS[0]), None),
    )
    assert exact.is_exact
    assert exact.is_allowed(None)
    assert not shallow.is_exact
    assert [shallow.is_allowed(given) for given in (None, ["bf16"], ["depth"])] == [False, False, True]
    assert not StepConfig((MEZO_OPTION,), None).is_allowed(allowable_options())
    assert allowable_options() == ["bf16", "depth", "int4", "int8"]


def test_a_load_config_is_allowed_by_all_of_its_options():
    both = LoadConfig((LOAD_OPTIONS[0], MemoryOption("depth", 1, "depth")))
    assert both.changes == {"dtype": "bf16", "depth": 1}
    assert [both.is_allowed(allow) for allow in (None, ["bf16"], ["bf16", "depth"])] == [False, False, True]
