"""Bytes by kind add up, and a budget holds them with margins."""

from __future__ import annotations

import json

from example_costs import MEMORY, cost

from taskedge.training.memory.step_cost import MARGIN_BYTES, MARGIN_SHARE


def test_kinds_add_up():
    assert MEMORY.peak == 605
    assert MEMORY.above_idle == 105


def test_a_budget_holds_the_peak_and_margins():
    assert cost().needed == round(605 + MARGIN_BYTES + MARGIN_SHARE * 105)


def test_configurations_are_compared_by_the_processor_on_one_thread():
    assert cost().work == 1.5
    assert cost(threads=4).work == 2.0


def test_json():
    values = json.loads(json.dumps(cost().as_json()))
    assert values["memory"]["peak"] == 605
    assert values["run_seconds"] == 20.0
    assert values["needed"] == cost().needed
