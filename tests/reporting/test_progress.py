"""Progress in a log file: whole lines, few of them."""

from __future__ import annotations

import sys

import pytest

from taskedge.reporting.progress import SECONDS_BETWEEN_LINES, ProgressLines, show_progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_a_bounded_rate_and_the_last_one_is_complete():
    clock, lines = Clock(), []
    display = ProgressLines(200, "rounds", "round", lines.append, clock=clock)
    for _ in range(200):
        clock.now += 0.3
        display.update()
    display.close()
    assert len(lines) == 60 / SECONDS_BETWEEN_LINES
    assert lines[0] == "rounds: 34 of 200 rounds, 10 s, about 50 s left"
    assert lines[-1] == "rounds: 200 of 200 rounds, 60 s"
    assert not any("\r" in line or "\n" in line for line in lines)


def test_a_short_task_shows_nothing():
    clock, lines = Clock(), []
    display = ProgressLines(3, "measuring", "row", lines.append, clock=clock)
    display.update(3)
    display.close()
    assert lines == []


def test_values_and_steps_done_before():
    clock, lines = Clock(), []
    display = ProgressLines(1000, "training", "step", lines.append, initial=500, clock=clock)
    display.set_postfix(loss="0.125", refresh=False)
    clock.now = 7200.0
    display.update(100)
    clock.now += 1
    display.close()
    assert lines == ["training: 600 of 1000 steps, 2.0 h, about 8.0 h left, loss 0.125"]


@pytest.mark.parametrize("closed", [False, True])
def test_without_a_terminal_there_are_lines(monkeypatch, closed):
    if closed:
        monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(show_progress(1, "x", "row", print), ProgressLines)


def test_on_a_terminal_one_line_changes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    display = show_progress(2, "x", "row", print)
    display.update(2)
    display.close()
    assert "\rx: 100%" in capsys.readouterr().err
