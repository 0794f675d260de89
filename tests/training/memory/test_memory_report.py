"""The text of a prediction."""

from __future__ import annotations

from dataclasses import replace

from example_costs import MEMORY, cost

from taskedge.training.memory.memory_report import costs_text, decision_text

MEMORY_MB = replace(MEMORY, **{kind: getattr(MEMORY, kind) * 10**6 for kind in ("process", "base", "saved")})
FAST = cost(config="as configured", memory=replace(MEMORY_MB, saved=900 * 10**6), cpu_seconds=1.0, seconds=1.0)
CHOSEN = cost(config="micro-batch 2", memory=MEMORY_MB, cpu_seconds=1.4, seconds=1.4, steps=500)
BARRED = cost(config="depth 1", memory=MEMORY_MB, exact=False, allowed=False, cpu_seconds=0.5)


def decision(*costs, chosen, budget=700 * 10**6):
    return {
        "budget": budget,
        "chosen": None if chosen is None else chosen.as_json(),
        "costs": [cost.as_json() for cost in costs],
    }


def test_the_decision_has_a_reason_and_figures():
    text = decision_text(decision(FAST, CHOSEN, BARRED, chosen=CHOSEN))
    first, second, third = text.splitlines()
    assert first == "within 700 MB: micro-batch 2: the fastest that fits ('as configured' would need 1,453 MB)"
    assert second.startswith("predicted peak memory 560 MB, in the step; 60 MB above the idle process with the base: ")
    assert "process before the base 400 MB, base 100 MB" in second
    assert "kept for the backward pass 60 MB" in second
    assert third == "predicted 1.40 s a step, 500 steps: 11.7 min"


def test_the_decision_without_a_faster_configuration():
    assert "no faster configuration was measured" in decision_text(decision(CHOSEN, BARRED, chosen=CHOSEN))


def test_the_table_marks_each_configuration():
    lines = costs_text(decision(FAST, CHOSEN, BARRED, chosen=CHOSEN)).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["configuration", "as configured", "micro-batch 2", "depth 1"]
    assert lines[1].endswith("does not fit")
    assert lines[2].endswith("11.7 min  chosen")
    assert lines[3].endswith("not allowed")


def test_without_a_budget_nothing_is_chosen():
    lines = costs_text(decision(FAST, CHOSEN, chosen=None, budget=None)).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["s", "min"]
