"""Rows of tasks and lines of rounds."""

from __future__ import annotations

import pytest

from taskedge.cli.cooperate import event_display
from taskedge.cli.cooperate.event_display import HEADER, SENTENCES, RoundLines, TaskTable

TASK = {"event": "task", "round": 3, "device": "d1", "blocks": [0, 1, 2, 3, 6], "result": "accepted", "why": ""}
TASK |= {"bytes_down": 12345, "bytes_up": 678, "predicted_seconds": 1.25, "observed_seconds": 1.5, "loss": 0.5}
TASK |= {"stated_seconds": 1.0, "real_seconds": None}
ROUND = {"event": "round", "round": 3, "accepted": 1, "devices": 2, "seconds": 1.5, "predicted_seconds": 1.25}
ROUND |= {"loss": None}


def test_rows_show_what_was_trained_and_why_it_was_not_used():
    assert event_display.task_row(TASK).split() == [
        "3",
        "d1",
        "head",
        "1-3",
        "6",
        "12,345",
        "678",
        "1.25",
        "1.50",
        "0.5000",
    ]
    late = event_display.task_row(TASK | {"result": "late", "why": "no answer in time", "loss": None})
    assert late.endswith("       -  late no answer in time")
    assert len(event_display.task_row(TASK)) == len(event_display.task_row(TASK | {"real_seconds": 0.4})) == len(HEADER)
    assert event_display.task_row(TASK | {"real_seconds": 1.2}).endswith(
        "  the real step took 1.20 s, 1.00 s were to emulate"
    )


def test_the_table_has_one_header(capsys):
    table = TaskTable()
    for event in (TASK, TASK, ROUND):
        table(event)
    lines = capsys.readouterr().err.splitlines()
    assert [line == HEADER for line in lines] == [True, False, False]


def test_a_round_is_one_line_with_its_bytes(capsys):
    lines = RoundLines(9)
    late = TASK | {"device": "d2", "result": "late", "why": "no answer in time"}
    for event in (TASK, late, ROUND, ROUND):
        lines(event)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "d2: late no answer in time"
    assert shown[1].startswith("round 3/9: 1 of 2 devices, 1.50 s (planned 1.25 s), 24,690 B down, 1,356 B up, loss -")
    assert "0 B down" in shown[2]  # each round counts anew


@pytest.mark.parametrize("display", [TaskTable, lambda: RoundLines(9)], ids=["table", "lines"])
def test_other_events_are_sentences(capsys, display):
    show = display()
    fields = {"device": "d1", "why": "w", "refused": 3, "entries": 5, "share": 0.1, "devices": 2, "round": 4}
    for name in SENTENCES:
        show({"event": name, **fields})
    show({"event": "ready", "device": "d1"})
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == len(SENTENCES)
    assert "round 4 planned: w" in shown
    assert "resumed after round 4" in shown


def test_answers_that_count_less_are_named(capsys):
    event = {**ROUND, "loss": 0.5, "scaled": ["d1", "d3"], "capped": ["d1"], "by_mean": [0, 2, 3]}
    for display in (RoundLines(9), TaskTable()):
        display(event)
        shown = capsys.readouterr().err
        assert "; scaled down to the median: d1, d3; with fewer tokens than claimed: d1" in shown
        assert "; too few answers for a robust rule: head 2-3" in shown
