"""Settings of a selection become arguments, and settings that other settings replace are left out."""

import pytest

from taskedge.errors import InputError
from taskedge.training.tune_config import TuneConfig


def config(**settings):
    return TuneConfig(model="m", train="t.csv", **settings)


@pytest.mark.parametrize(
    ("settings", "budget", "per_neuron", "allocation"),
    [
        ({}, "0.1%", None, "per_neuron"),
        ({"columns": 8}, None, None, None),
        ({"columns": 8, "per_neuron": 2}, None, 2, None),
        ({"max_columns": 8}, "0.1%", None, "per_neuron"),
        ({"max_rows": 8}, "0.1%", None, "per_neuron"),
        ({"max_rows": 8, "max_columns": 4}, "0.1%", None, "per_neuron"),
        ({"max_rows": 8, "max_columns": 4, "allocation": "block"}, None, None, "block"),
        ({"max_rows": 8, "max_columns": 4, "allocation": "block", "budget": "1%"}, "1%", None, "block"),
        ({"max_columns": 4, "allocation": "block"}, "0.1%", None, "block"),
        ({"per_neuron": 2}, None, 2, "per_neuron"),
    ],
)
def test_columns_replace_the_budget_and_the_allocation(settings, budget, per_neuron, allocation):
    found = config(**settings).select_kwargs()
    assert (found["budget"], found["per_neuron"], found["allocation"]) == (budget, per_neuron, allocation)
    assert found.get("columns") == settings.get("columns")
    assert found.get("max_rows") == settings.get("max_rows")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": 8, "budget": "1%"}, r"columns \(8\) is itself the budget: leave out the budget \('1%'\)"),
        ({"columns": 8, "max_columns": 4}, r"leave out the maximum number of columns \(4\)"),
        ({"columns": 8, "allocation": "global"}, r"leave out the allocation \('global'\)"),
        ({"columns": 8, "allocation": "2:4"}, r"leave out the allocation \('2:4'\)"),
        ({"columns": 8, "rule": "spt"}, r"spreads its budget itself: leave out the number of columns \(8\)"),
        (
            {"column_score": "weight"},
            r"ranked only if their number is limited: leave out the column score \('weight'\)",
        ),
        ({"columns": 8, "column_score": "weigth"}, "did you mean 'weight'"),
        ({"columns": 0}, "greater than or equal to 1"),
        ({"max_rows": 0}, "greater than or equal to 1"),
        ({"max_rows": 8, "form": "lora"}, "has no effect with form 'lora'"),
        ({"max_rows": 8, "allocation": "2:4"}, r"leave out the maximum number of rows \(8\)"),
        ({"max_rows": 8, "rule": "spt"}, r"leave out the maximum number of rows \(8\)"),
        ({"per_neuron": 2, "allocation": "block"}, "leave out the number of entries per neuron"),
        ({"columns": 8, "form": "lora"}, "has no effect with form 'lora'"),
        ({"column_draws": 2}, "needs the number of columns of a draw"),
        ({"columns": 8, "column_draws": 2, "memory": "1GB"}, "does not predict columns that change"),
        ({"columns": 8, "column_draws": 2, "regrow": 5}, "both change which entries train"),
        ({"columns": 8, "column_draws": 2, "form": "sparse_lora"}, "has no effect with form 'sparse_lora'"),
        ({"head_warmup": True, "memory": "1GB"}, "whose memory is not predicted"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"rule": "gradient"}, True),
        ({"columns": 8}, False),
        ({"columns": 8, "column_score": "pursuit"}, True),
        ({"columns": 8, "column_score": "greedy"}, False),
    ],
)
def test_gradients_are_needed_by_the_rule_or_by_the_column_score(settings, expected):
    assert config(**settings).needs_gradients is expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"change_lr": 1e-3}, "--change-lr has no effect without --rule change: leave it out"),
        ({"change_epochs": 2, "rule": "gradient"}, "--change-epochs has no effect without --rule change"),
        ({"rule": "change", "memory": "1GB"}, "--rule change trains all weights first.*leave out --memory"),
        ({"support_file": "s.safetensors", "change_lr": 1e-3}, "--change-lr has no effect with --support-file"),
        ({"rule": "change", "change_lr": 0}, "change_lr=0 must be greater than 0"),
        ({"rule": "principal:0"}, r"unknown rule 'principal:0'.*principal:R"),
    ],
)
def test_settings_of_a_dense_run_that_would_have_no_effect_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        config(**settings)


def test_the_dense_run_has_the_settings_of_the_run_but_for_its_rate_and_epochs():
    settings = config(rule="change", change_lr=2e-4, change_epochs=0.5, clip=0.5, depth=2)
    assert settings.needs_gradients
    assert settings.needs_dense_run
    dense = settings.dense_run_settings()
    assert (dense["config"].lr, dense["config"].head_lr, dense["config"].epochs) == (2e-4, 3e-2, 0.5)
    assert (dense["config"].clip, dense["depth"], dense["needs"]) == (0.5, 2, ())
    assert config(rule="change", lr=1e-3).dense_run_settings()["config"].head_lr == 3e-2
    mezo = config(rule="change", optimizer="mezo", lr=1e-6).dense_run_settings()["config"]
    assert (mezo.lr, mezo.head_lr) == (1e-4, 3e-2)  # a dense run takes gradients
    assert not config(rule="gradient").needs_dense_run


@pytest.mark.parametrize("coding", ["int8", "int4"])
def test_coded_weights_have_no_gradients_for_a_column_score(coding):
    with pytest.raises(InputError, match=f"{coding} does not support --column-score gradient"):
        config(columns=8, column_score="gradient", weight_storage=coding)
    assert config(columns=8, column_score="gradient").unsupported_by("mmap") == ""


def test_the_head_has_a_rate_of_its_own_unless_it_is_that_of_the_rest():
    assert config().trainer_config().head_lr is None  # one group of parameters at 3e-2
    assert config(lr=1e-3).head_lr == 3e-2
    assert config(lr=1e-3, head_lr=1e-3).head_lr == 1e-3
    assert config(lr=1e-6, optimizer="mezo").head_lr is None
