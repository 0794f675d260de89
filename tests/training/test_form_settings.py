"""Settings of forms with gates and filters: in other forms they are refused, and so is what gates cannot do."""

from __future__ import annotations

import pytest

from taskedge.errors import InputError
from taskedge.training.selection_settings import GATE_PENALTY, TAPS_PENALTY
from taskedge.training.training_settings import LEARNING_RATES
from taskedge.training.tune_config import TuneConfig


def config(**more):
    return TuneConfig(model="base", train="train.csv", **more)


BOTH = {"form": "sparse_plus_low_rank"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gate_threshold": 0.1}, "has no effect with form 'sparse', only with taps and sparse_taps"),
        ({"form": "sparse_taps", "norms": "task"}, "has no effect with form 'sparse_taps', only with taps"),
        ({"form": "taps", "budget": "1%"}, "has no effect with form 'taps'"),
        ({"form": "taps", "filter_rank": 2}, "only with filtered"),
        ({"form": "taps", "gate_threshold": 0.2}, "less than or equal to 0.15"),
        ({"form": "taps", "rank": 2}, "has no effect with form 'taps'"),
        ({"form": "taps", "regrow": 5}, "--regrow cannot be used with form 'taps', since entries behind gates stay"),
        ({"form": "sparse_taps", "rotate": 5}, "--rotate cannot be used with form 'sparse_taps'"),
        ({"form": "taps", "optimizer": "mezo", "lr": 1e-3}, "--optimizer mezo cannot be used with form 'taps'"),
        ({"form": "taps", "weight_storage": "int8"}, "does not support --form taps"),
        ({"form": "sparse_taps", "support": "diff-pruning"}, "form 'sparse_taps' has none"),
        ({"form": "sparse_taps", "gates": "structured"}, "no effect without gates"),
        ({"product_rate": 0.2}, "has no effect with form 'sparse', only with sparse_plus_low_rank"),
        ({**BOTH, "optimizer": "mezo", "lr": 1e-3}, "--optimizer mezo has one rate for all"),
        ({**BOTH, "regrow": 5}, "--regrow moves the entries of form 'sparse' only"),
        ({**BOTH, "rule": "spt"}, "--rule spt has products of its own"),
        ({**BOTH, "weight_storage": "int8"}, "does not support --form sparse_plus_low_rank"),
        ({**BOTH, "support": "diff-pruning"}, "form 'sparse_plus_low_rank' has none"),
        ({**BOTH, "column_draws": 2, "columns": 8}, "has no effect with form 'sparse_plus_low_rank'"),
        ({"gate_penalty": 2.0}, "--gate-penalty has no effect without gates"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(more, message):
    with pytest.raises(InputError, match=message):
        config(**more)


@pytest.mark.parametrize("form", ["taps", "sparse_taps"])
def test_the_penalty_has_a_default_of_its_own(form):
    assert config(form=form).layer_gate_penalty == TAPS_PENALTY != GATE_PENALTY
    assert config(form=form, gate_penalty=0.3).layer_gate_penalty == 0.3
    assert config(form=form).lr == LEARNING_RATES[form]
    assert not config(form=form).needs_dense_run


def test_entries_behind_gates_take_the_settings_of_a_selection():
    assert config(form="sparse_taps", budget="1%", rule="magnitude", step="plain", support_file=None).budget == "1%"
