"""One JSON object per line, on disk before it is shown."""

import json

import pytest

from taskedge.cooperation.coordinator.event_log import MAX_WHY_CHARACTERS, EventLog
from taskedge.errors import InputError


def test_events_are_lines_in_order(tmp_path):
    path, shown = tmp_path / "log.jsonl", []

    def on_event(event):
        shown.append(event)
        assert json.loads(path.read_text().splitlines()[-1]) == event

    log = EventLog(path, on_event)
    log.write("joined", device="d0")
    log.write("round", round=1, loss=None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == shown
    assert [{k: v for k, v in line.items() if k != "at"} for line in lines] == [
        {"event": "joined", "device": "d0"},
        {"event": "round", "round": 1, "loss": None},
    ]
    assert 0 <= lines[0]["at"] <= lines[1]["at"]


def test_a_resumed_run_appends(tmp_path):
    for event in ("done", "resumed"):
        EventLog(tmp_path / "log.jsonl").write(event)
    assert [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").open()] == ["done", "resumed"]


def test_every_line_is_json_and_texts_are_cut(tmp_path):
    log = EventLog(tmp_path / "log.jsonl")
    log.write("round", loss=float("inf"), norms={"a": [float("nan")]}, why="x" * 10**6)
    (text,) = (tmp_path / "log.jsonl").read_text().splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (line["loss"], line["norms"]) == (None, {"a": [None]})
    assert len(line["why"]) == MAX_WHY_CHARACTERS


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_shown(tmp_path):
    shown = []
    log = EventLog(tmp_path / "none" / "log.jsonl", shown.append)
    with pytest.raises(InputError, match=r"none/log\.jsonl: cannot be written \(No such file.*resume"):
        log.write("joined")
    assert shown == []
