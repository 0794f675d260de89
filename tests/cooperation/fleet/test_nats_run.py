"""A run over the server of a fleet: the delta's provenance, and what was sent by kind of message."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import tiny_fleet
import tiny_task

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from linked_fleets import started

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.nats_run import PROVENANCE, TrafficSummary, run_over_nats, summarize_traffic
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.cooperation.transport.links import Traffic
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import ServerError
from taskedge.errors import TaskEdgeError


def test_traffic_is_summed_over_devices_by_kind_and_direction():
    first = (Traffic({"hello": 10, "task": 100}, {"hello": 1, "task": 2}), Traffic({"hello": 20}, {"hello": 1}))
    second = (Traffic({"hello": 11}, {"hello": 1}), Traffic({"late": 5, "hello": 21}, {"late": 1, "hello": 1}))
    assert summarize_traffic([first, second]) == [
        TrafficSummary("hello", "down", 2, 21),
        TrafficSummary("task", "down", 2, 100),
        TrafficSummary("hello", "up", 2, 41),
        TrafficSummary("late", "up", 1, 5),
    ]
    assert summarize_traffic([]) == []


def test_provenance_names_settings():
    assert set(PROVENANCE) <= CooperationConfig.model_fields.keys()


@pytest.mark.slow
def test_a_server_that_is_killed_under_a_run_is_started_again(tmp_path):
    """Nobody else starts it. The devices come back, and no round is lost."""
    registry, outcome, events, pids = run_of_one_device(tmp_path, rounds=6, kill_in_round=2)
    assert (outcome.result.rounds, outcome.result.version) == (6, 6)
    said = [event["why"] for event in events if event["event"] == "server"]
    assert "the message server has ended" in said[0]
    assert f"was started again (process {pids[0]})" in said[-1]
    assert registry.server.pid is None


@pytest.mark.slow
def test_a_run_whose_server_cannot_be_started_says_so(tmp_path, monkeypatch):
    def fails(self):
        raise ServerError("the port is taken")

    def patch():
        monkeypatch.setattr(DeviceRegistry, "start_server", fails)

    with pytest.raises(TaskEdgeError, match=r"ready for 2 s; no device can be reached \(.*127\.0\.0\.1"):
        run_of_one_device(tmp_path, rounds=6, kill_in_round=2, wait_seconds=2.0, min_deadline=1.0, at_kill=patch)


def run_of_one_device(folder, kill_in_round=None, at_kill=lambda: None, **settings):
    tiny_task.bert(folder / "base")
    tiny_task.table(folder / "d0.csv", tiny_task.rows(16))
    registry, server = started(folder / "plant", "d0")
    log, events, pids = lambda line: None, [], []

    def on_event(event):
        events.append(event)
        if event["event"] == "round" and event["round"] == kill_in_round:
            at_kill()
            os.kill(server.pid, signal.SIGKILL)

    async def run():
        spec = TaskSpec(str(folder / "base"), folder / "d0.csv", classes=("neg", "pos"))
        joint = joint_task(spec, log)
        link = NatsDeviceLink(registry.folder / "devices" / "d0")
        device = Device(link, joint.local_training(min_rows=1), labels=joint.labels)
        serving = asyncio.create_task(device.serve())
        own = joint_task(TaskSpec(spec.model, classes=spec.classes), log)
        try:
            return await run_over_nats(
                registry,
                own,
                tiny_fleet.settings(**{"devices": 1, **settings}),
                folder / "run",
                on_event=on_event,
                on_server_started=pids.append,
            )
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    try:
        outcome = asyncio.run(run())
    finally:
        registry.server.stop()
        server.stop()
    return registry, outcome, events, pids


@pytest.mark.slow
def test_a_run_over_nats(tmp_path):
    tiny_task.bert(tmp_path / "base")
    tiny_task.table(tmp_path / "d0.csv", tiny_task.rows(16))
    registry, server = started(tmp_path / "plant", "d0")
    log, events = lambda line: None, []

    async def run():
        spec = TaskSpec(str(tmp_path / "base"), tmp_path / "d0.csv", classes=("neg", "pos"))
        joint = joint_task(spec, log)
        link = NatsDeviceLink(registry.folder / "devices" / "d0")
        device = Device(link, joint.local_training(min_rows=1), labels=joint.labels)
        serving = asyncio.create_task(device.serve())
        config = tiny_fleet.settings(rounds=2, devices=1)
        own = joint_task(TaskSpec(spec.model, classes=spec.classes), log)
        outcome = await run_over_nats(registry, own, config, tmp_path / "run", on_event=events.append)
        await serving
        return outcome

    try:
        outcome = asyncio.run(run())
    finally:
        server.stop()
    assert (outcome.result.rounds, outcome.result.version) == (2, 2)
    training = outcome.delta.provenance.training
    assert {name: training[name] for name in ("mode", "rounds", "lr", "devices")} == {
        "mode": "deft",
        "rounds": 2,
        "lr": 0.05,
        "devices": 1,
    }
    assert outcome.delta.provenance.labels == ("neg", "pos")
    fields = outcome.to_json()
    sent = {(line["kind"], line["direction"]): line["messages"] for line in fields["traffic"]}
    assert sent["task", "down"] == sent["gradients", "up"] == 2
    assert fields["entries"] == outcome.delta.num_entries
    assert [event["event"] for event in events][-1] == "done"
