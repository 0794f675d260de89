"""Settings of tune-many are checked before anything is loaded."""

from __future__ import annotations

import pytest

from taskedge.errors import InputError
from taskedge.training.many.many_config import TuneManyConfig


def test_the_target_is_a_multiple_of_one_pass() -> None:
    assert TuneManyConfig(model="m").target is None
    assert TuneManyConfig(model="m", flops_target="1.5x").target == 1.5
    assert TuneManyConfig(model="m", flops_target="2").target == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flops_target": "0.5x"}, "less than one pass"),
        ({"flops_target": "fast"}, "no multiple of one pass"),
        ({"flops_target": "nan"}, "no multiple of one pass"),
        ({"shared_budget": "lots"}, "lots"),
        ({"task_budget": "-1%"}, "-1%"),
        ({"rule": "gradient"}, "reads gradients, .* choose activation or magnitude"),
        ({"rule": "nonesuch"}, "nonesuch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message) -> None:
    with pytest.raises(InputError, match=message):
        TuneManyConfig(model="m", **values)
