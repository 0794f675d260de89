"""How a fleet stands, read from what a run wrote."""

import json

import pytest

from taskedge.cooperation.fleet.coordinator_lock import coordinated, sole
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.fleet.fleet_status import report
from taskedge.errors import InputError


def wrote(folder, *events):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run": "x", "identity": {"rounds": 9, "mode": "deft"}}))
    lines = [json.dumps({"event": event, **facts}) for event, facts in events]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"event": "rou']))


def test_devices_and_rounds_are_told_as_the_log_says(tmp_path):
    fleet = Fleet.create(tmp_path / "plant")
    for name in ("a", "b", "c"):
        fleet.enrol(name)
    why = {"why": "it holds another base"}
    events = [("joined", {"device": "a"}), ("joined", {"device": "b"}), ("unfit", {"device": "b", **why})]
    events += [("round", {"round": n, "version": n - 1, "loss": 0.5}) for n in (1, 2)]
    wrote(tmp_path / "plant" / "run", *events, ("left", {"device": "a"}))
    found = report(tmp_path / "plant")
    told = {device["name"]: (device["present"], device["note"]) for device in found["devices"]}
    assert told == {"a": (False, ""), "b": (True, "unfit: it holds another base"), "c": (None, "")}
    run = found["run"]
    assert (run["state"], run["round"], run["rounds"], run["version"], run["loss"]) == ("interrupted", 2, 9, 1, 0.5)
    with sole(tmp_path / "plant"):
        assert report(tmp_path / "plant")["run"]["state"] == "goes on"


def test_the_folder_of_a_run_on_one_machine_can_be_named(tmp_path):
    Fleet.create(tmp_path / "task.run" / "fleet", name="local")
    wrote(tmp_path / "task.run" / "run", ("round", {"round": 3, "version": 3, "loss": None}), ("done", {}))
    found = report(tmp_path / "task.run")
    assert (found["fleet"], found["run"]["round"]) == ("local", 3)


def test_a_finished_run_is_told_until_the_next_begins(tmp_path):
    Fleet.create(tmp_path / "plant")
    wrote(tmp_path / "plant" / "last-run", ("round", {"round": 9, "version": 9, "loss": 0.1}))
    assert report(tmp_path / "plant")["run"]["round"] == 9
    wrote(tmp_path / "plant" / "run")
    assert report(tmp_path / "plant")["run"]["round"] == 0
    (tmp_path / "plant" / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: damaged"):
        report(tmp_path / "plant")


def test_one_coordinator_at_a_time(tmp_path):
    assert not coordinated(tmp_path)
    with sole(tmp_path):
        assert coordinated(tmp_path)
        with pytest.raises(InputError, match="another coordinator"), sole(tmp_path):
            pass
    assert not coordinated(tmp_path)
