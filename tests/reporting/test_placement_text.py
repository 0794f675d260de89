"""A placement as text."""

from __future__ import annotations

from chips import chip, memory

from taskedge.placement.placement_plan import make_plan
from taskedge.placement.stored_tensors import ActivationTraffic, BaseTensor, TaskSize
from taskedge.reporting.placement_text import faults_text, placement_text, time_text

PLAN = make_plan(
    "toy",
    chip(memory("sram", 40_000), memory("fefet", 200_000), passes_per_hour=1e5, switches_per_hour=0.001),
    [BaseTensor("w", 100_000, True, 100_000)],
    ActivationTraffic(200, 500, 700),
    [TaskSize(f"t{index}", 1000, 100) for index in range(3)],
)


def test_a_plan_in_words():
    text = placement_text(PLAN)
    assert "toy with 3 tasks: the best of" in text
    assert "everything in sram" in text
    assert "impossible: " in text
    assert "- FeFET: The array has one bit in a cell" in text
    assert "w " not in text.split("everything in")[0].split("content")[1]
    assert "t2: entries" in placement_text(PLAN, tensors=True)


def test_an_unproved_plan_is_called_so():
    text = placement_text(PLAN | {"proved_optimal": False, "possible_placements": None})
    assert "toy with 3 tasks: the best found in time by energy" in text


def test_accuracy_over_faults():
    row = {"wrong_value_cells": 1000, "value_cells": 5000, "wrong_mask_cells": 1, "mask_cells": 9, "changed_values": 7}
    rows = [{"setting": "0.1", **row, "measures": [{"accuracy": 0.5}, {"accuracy": 0.75}]}]
    line = faults_text(rows, "accuracy").splitlines()[1]
    assert line.split() == ["0.1", "1,001", "5,009", "7", "0.6250", "0.5000", "of", "2"]


def test_units_of_time():
    assert [time_text(s) for s in (0, 2e-9, 3.5e-6, 0.02, 12)] == ["0 ns", "2 ns", "3.5 us", "20 ms", "12 s"]
