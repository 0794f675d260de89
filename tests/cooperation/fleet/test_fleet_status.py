"""The state of a fleet and its run, read from the files of a run."""

import json

import pytest

from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.fleet_status import fleet_status
from taskedge.errors import InputError


def write_run(folder, *events):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run": "x", "identity": {"rounds": 9, "mode": "deft"}}))
    lines = [json.dumps({"event": event, **fields}) for event, fields in events]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"event": "rou']))  # the last line is being written


def test_devices_and_rounds_are_those_of_the_log(tmp_path):
    registry = DeviceRegistry.create(tmp_path / "plant")
    for name in ("a", "b", "c"):
        registry.enroll(name)
    reason = {"why": "it holds another base"}
    events = [("joined", {"device": "a"}), ("joined", {"device": "b"}), ("unfit", {"device": "b", **reason})]
    events += [("round", {"round": n, "version": n - 1, "loss": 0.5}) for n in (1, 2)]
    write_run(tmp_path / "plant" / "run", *events, ("left", {"device": "a"}))
    status = fleet_status(tmp_path / "plant")
    devices = {device["name"]: (device["present"], device["note"]) for device in status["devices"]}
    assert devices == {"a": (False, ""), "b": (True, "unfit: it holds another base"), "c": (None, "")}
    run = status["run"]
    assert (run["state"], run["round"], run["rounds"], run["version"], run["loss"]) == ("interrupted", 2, 9, 1, 0.5)
    with hold_coordinator_lock(tmp_path / "plant"):
        assert fleet_status(tmp_path / "plant")["run"]["state"] == "running"


def test_the_folder_of_a_run_on_one_machine_can_be_named(tmp_path):
    DeviceRegistry.create(tmp_path / "task.run" / "fleet", name="local")
    write_run(tmp_path / "task.run" / "run", ("round", {"round": 3, "version": 3, "loss": None}), ("done", {}))
    status = fleet_status(tmp_path / "task.run")
    assert (status["fleet"], status["run"]["round"], status["run"]["state"]) == ("local", 3, "done")


def test_a_finished_run_is_shown_until_the_next_begins(tmp_path):
    DeviceRegistry.create(tmp_path / "plant")
    assert fleet_status(tmp_path / "plant")["run"] is None
    write_run(tmp_path / "plant" / "last-run", ("round", {"round": 9, "version": 9, "loss": 0.1}))
    assert fleet_status(tmp_path / "plant")["run"]["round"] == 9
    write_run(tmp_path / "plant" / "run")
    assert fleet_status(tmp_path / "plant")["run"]["round"] == 0


@pytest.mark.parametrize("content", ["{", '{"run": "x", "identity": {}}'])
def test_a_damaged_run_file_is_named(tmp_path, content):
    DeviceRegistry.create(tmp_path / "plant")
    write_run(tmp_path / "plant" / "run")
    (tmp_path / "plant" / "run" / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json: damaged"):
        fleet_status(tmp_path / "plant")
