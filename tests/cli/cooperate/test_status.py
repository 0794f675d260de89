"""The state of a fleet as text."""

from __future__ import annotations

import json

from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
from taskedge.cooperation.fleet.device_registry import DeviceRegistry


def test_devices_and_run_are_shown(taskedge, here):
    registry = DeviceRegistry.create(here / "plant", name="plant-7")
    assert "no devices: taskedge cooperate enrol" in taskedge("cooperate", "status").out
    registry.enroll("d1")
    lines = taskedge("cooperate", "status").out.splitlines()
    assert lines[0] == "fleet plant-7, server 127.0.0.1:4222: does not run"
    assert lines[2].split() == ["d1", "unknown", registry.devices["d1"].expires[:10]]
    assert lines[3] == "no run yet: taskedge cooperate serve begins one"
    run = here / "plant" / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"run": "x", "identity": {"rounds": 9, "mode": "deft"}}))
    events = [{"event": "joined", "device": "d1"}, {"event": "round", "round": 2, "version": 2, "loss": 0.5}]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert taskedge("cooperate", "status").out.splitlines()[-1] == (
        "run interrupted: round 2 of 9, version 2, loss 0.5000"
    )
    with hold_coordinator_lock(here / "plant"):
        lines = taskedge("cooperate", "status", "--folder", "plant").out.splitlines()
    assert lines[2].split()[1] == "yes"
    assert lines[-1].startswith("run running: round 2 of 9")
