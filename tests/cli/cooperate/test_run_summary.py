"""The figures of a finished run, as text and as JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace

from taskedge.cli.cooperate.run_summary import REVEALED, RunSummary, traffic_table
from taskedge.cooperation.coordinator.coordinator import CooperationResult
from taskedge.cooperation.fleet.nats_run import CoordinatorOutcome, TrafficSummary

RESULT = CooperationResult(4, 3, 0.25, 124, 0.02002, 34, 12.4, {"d1": {}, "d2": {}}, {"d1": {}, "d2": {}})
TRAFFIC = [TrafficSummary("task", "down", 8, 12345), TrafficSummary("gradients", "up", 7, 678)]
OUTCOME = CoordinatorOutcome(SimpleNamespace(), RESULT, TRAFFIC)


def summary(tmp_path, measures=None):
    (tmp_path / "task.safetensors").write_bytes(b"x" * 1000)
    return RunSummary(tmp_path / "task.safetensors", OUTCOME, measures)


def test_the_figures_are_two_lines(tmp_path, capsys):
    summary(tmp_path).print_summary(show_traffic=False, as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("task.safetensors: 124 entries (2.002%) and a head of 34 parameters")
    assert second == ("1,000 bytes, 4 rounds in 12 s on 2 devices, training loss 0.250; 12,345 bytes down, 678 up")


def test_measures_and_traffic_follow(tmp_path, capsys):
    summary(tmp_path, {"rows": 40, "accuracy": 0.75}).print_summary(show_traffic=True, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "on held-out data: accuracy 0.7500 (40 rows)"
    assert lines[3:] == traffic_table(TRAFFIC).splitlines()
    assert [line.split()[:4] for line in lines[4:6]] == [
        ["task", "devices", "8", "12,345"],
        ["gradients", "coordinator", "7", "678"],
    ]
    assert lines[6:] == REVEALED.splitlines()


def test_json_has_everything(tmp_path, capsys):
    summary(tmp_path, {"rows": 40}).print_summary(show_traffic=True, as_json=True)
    fields = json.loads(capsys.readouterr().out)
    assert fields["quality"] == {"rows": 40}
    assert (fields["rounds"], fields["loss"], fields["out"]) == (4, 0.25, str(tmp_path / "task.safetensors"))
    assert fields["traffic"][1] == {"kind": "gradients", "direction": "up", "messages": 7, "bytes": 678}


def test_the_traffic_says_what_it_reveals():
    table = traffic_table(TRAFFIC)
    for kind in ("gradients", "statistics", "task"):
        assert f"\n{kind}" in table
    assert "the trained values of the whole model, to every device" in table
