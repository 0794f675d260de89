"""Coordinators and devices over one server, and the unit of the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_task
from local_runs import files, on_event

from taskedge.cli.cooperate import event_display
from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.fleet_status import fleet_status
from taskedge.cooperation.transport.nats.server import free_port


def test_the_unit_of_the_server_runs_its_configuration(taskedge, here):
    pytest.importorskip("nats", reason="needs the extra 'fleet'")
    taskedge("cooperate", "init", "--name", "plant")
    before = files(here)
    ended = taskedge("cooperate", "serve", "--unit")
    assert ended.code == 0, ended.err
    assert files(here) == before
    assert ended.out.startswith("[Unit]\nDescription=TaskEdge server of fleet plant\n")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("ExecStart=")]
    program, flag, config = shlex.split(line.removeprefix("ExecStart="))
    assert os.access(program, os.X_OK)
    assert (flag, config) == ("-c", str(here / "plant" / "server.conf"))


@pytest.mark.slow
def test_serve_and_join_over_one_server_and_two_coordinators(taskedge, task, here):
    """The first coordinator is stopped; the second finds the server and the devices where they were."""
    assert taskedge("cooperate", "init", "--name", "plant", "--port", free_port()).code == 0
    fleet = DeviceRegistry.open(here / "plant")
    tiny_task.table(here / "one.csv", [("good film", "pos"), ("fine plot", "pos")] * 8)
    data = {"d1": task / "train.csv", "d2": here / "one.csv"}

    def join(name):
        bundle = here / "plant" / "devices" / name
        about = ["--model", task / "base", "--data", data[name], "--class", "neg", "--class", "pos", "--threads", 1]
        return tiny_task.forked(list(map(str, ["cooperate", "join", "--bundle", bundle, *about])))

    def serve(*more):
        about = ["--model", task / "base", "--budget", "2%", "--devices", 2, "--rounds", 4, "--batch-size", 8]
        return list(map(str, ["cooperate", "serve", *about, *more]))

    def wait(event):
        """Until it is told to end."""
        if event["event"] == "round" and event["round"] == 2:
            (here / "aside").write_text(json.dumps(fleet_status(here / "plant")))
            (here / "aside").rename(here / "seen")
            end = time.monotonic() + 60
            while not asyncio.current_task().cancelling() and time.monotonic() < end:
                time.sleep(0.02)

    classes = ["--class", "neg", "--class", "pos"]
    with ThreadPoolExecutor(3) as pool:
        try:
            for name in data:
                assert taskedge("cooperate", "enrol", name).code == 0
            joined = [pool.submit(join, name) for name in data]
            serving = pool.submit(tiny_task.forked, serve(*classes), on_event(wait, event_display.RoundLines))
            while not (here / "seen").exists() and not serving.done():
                time.sleep(0.05)
            stopped = taskedge("cooperate", "stop", "--keep-server")
            assert re.search(
                r"coordinator \(process \d+\) has ended: its run can be continued with --resume", stopped.out
            )
            ended = serving.result()
            assert ended.code == 130, ended.err
            assert "round 2/4: 2 of 2 devices" in ended.err
            assert ended.err.endswith("interrupted: continue with --resume\n")
            pid = fleet.server.pid
            assert pid is not None
            seen = json.loads((here / "seen").read_text())
            assert seen["coordinator_runs"]
            assert [(device["name"], device["present"]) for device in seen["devices"]] == [("d1", True), ("d2", True)]
            assert (seen["run"]["state"], seen["run"]["round"], seen["run"]["rounds"]) == ("running", 2, 4)
            assert json.loads(taskedge("cooperate", "status", "--json").out)["run"]["state"] == "interrupted"
            assert "plant/run holds an interrupted run" in taskedge(*serve(*classes)).err
            with hold_coordinator_lock(here / "plant"):
                assert "another coordinator works with this folder" in taskedge(*serve(*classes, "--resume")).err
            ended = tiny_task.forked(serve(*classes, "--resume"))
            assert ended.code == 0, ended.err
            assert fleet.server.pid == pid
            for one in joined:
                assert one.result(60).code == 0, one.result().err
                assert one.result().err.endswith("the run is done\n")
            stopped = taskedge("cooperate", "stop", "--folder", "plant")
            assert stopped.out.splitlines()[0] == "plant: no coordinator runs"
            assert f"the server (process {pid}) has ended" in stopped.out
            assert fleet.server.pid is None
        finally:
            fleet.server.stop()
    assert "no server runs" in taskedge("cooperate", "stop", "--folder", "plant").out
    assert not (here / "plant" / "run").exists()
    told = taskedge("cooperate", "status").out
    assert "run done: round 4 of 4, version 4, loss" in told
    assert taskedge("eval", "task.safetensors", "--data", task / "eval.csv").code == 0
