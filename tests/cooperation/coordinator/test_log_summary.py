"""What ``status`` shows is the same whether a log is read whole or from a summary on."""

import json

import pytest

from taskedge.cooperation.coordinator.event_log import EventLog
from taskedge.cooperation.coordinator.log_summary import EVENTS_PER_SUMMARY, SUMMARY_FILE, LogSummary, summarize_log


def write(log, rounds):
    log.write("joined", device="a")
    log.write("unfit", device="b", why="another base")
    for number in range(1, rounds + 1):
        log.write("round", round=number, version=number, loss=0.5)


def test_a_summary_leads_to_the_same_state(tmp_path):
    path = tmp_path / "log.jsonl"
    write(EventLog(path), EVENTS_PER_SUMMARY + 5)
    EventLog(path).write("left", device="a")  # a resumed run
    found = summarize_log(path)
    assert found.num_bytes == path.stat().st_size
    assert (found.present, found.notes) == ({"a": False}, {"b": "unfit: another base"})
    assert (found.last_event, found.last_round["round"]) == ("left", EVENTS_PER_SUMMARY + 5)
    (tmp_path / SUMMARY_FILE).unlink()
    assert summarize_log(path) == found


def test_a_reader_reads_only_what_is_behind_the_summary(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    write(EventLog(path), 3 * EVENTS_PER_SUMMARY)
    read = []
    monkeypatch.setattr(LogSummary, "add", lambda self, event, size: read.append(event))
    summarize_log(path)
    assert 0 < len(read) < EVENTS_PER_SUMMARY


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9}', b'{"format": 1, "color": 2}'])
def test_a_damaged_summary_is_not_used(tmp_path, content):
    path = tmp_path / "log.jsonl"
    write(EventLog(path), 3)
    (tmp_path / SUMMARY_FILE).write_bytes(content)
    assert summarize_log(path).last_round["round"] == 3


def test_a_summary_of_a_longer_log_is_not_used(tmp_path):
    path = tmp_path / "log.jsonl"
    LogSummary(num_bytes=10**6, last_event="done").write(tmp_path)
    write(EventLog(path), 1)
    assert summarize_log(path).last_event == "round"


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"garbage\n[1]\n" + json.dumps({"event": "joined", "device": "a"}).encode() + b'\n{"event": "le')
    assert summarize_log(path).present == {"a": True}
    assert summarize_log(tmp_path / "none") == LogSummary()
