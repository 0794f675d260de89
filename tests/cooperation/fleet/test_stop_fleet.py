"""Ending a coordinator from outside: the one that holds the folder, and no other process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny_task

from taskedge.cooperation.fleet import coordinator_lock as module
from taskedge.cooperation.fleet.coordinator_lock import coordinated, coordinator, sole
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.fleet.stop_fleet import Ended, stop
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError, TaskEdgeError

HOLD = """
import signal, sys, time
from pathlib import Path
from taskedge.cooperation.fleet.coordinator_lock import sole
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with sole(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holds():
    """Processes that hold a folder as a coordinator does."""
    running = []

    def start(folder, how="hears"):
        words = [sys.executable, "-c", HOLD, str(folder), how]
        process = subprocess.Popen(words, env=tiny_task.environment(), stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def with_a_run(folder):
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "run.json").write_text("{}")
    return folder


def test_the_coordinator_is_told_to_end_and_its_run_stays(tmp_path, holds):
    folder = with_a_run(tmp_path)
    process = holds(folder)
    assert coordinator(folder) == process.pid
    assert stop(folder, 60) == Ended(process.pid, None, True)
    assert process.wait(60) == -15
    assert coordinator(folder) is None
    assert stop(folder, 60) == Ended(None, None, True)


def test_one_that_does_not_end_is_named_and_left(tmp_path, holds):
    process = holds(tmp_path, "deaf")
    with pytest.raises(TaskEdgeError, match=rf"process {process.pid}\) was told to end and still runs after 0\.3 s"):
        stop(tmp_path, 0.3)
    assert process.poll() is None


def test_a_process_that_does_not_hold_the_folder_is_never_told_to_end(tmp_path, holds):
    """As when a pid belongs to another process by now."""
    process, other = holds(tmp_path), subprocess.Popen(["/bin/sleep", "600"])
    try:
        for written in (str(other.pid), "", "999999999"):
            (tmp_path / ".coordinator").write_text(written)
            with pytest.raises(InputError, match="does not say which process it is"):
                stop(tmp_path, 60)
        assert other.poll() is None
        assert process.poll() is None
    finally:
        other.kill()
        other.wait()


def test_another_users_coordinator_is_not_ours_to_end(tmp_path, holds, monkeypatch):
    process = holds(tmp_path)

    def forbidden(*_):
        raise PermissionError

    for place, name in ((os, "kill"), (module, "_opened")):
        monkeypatch.setattr(place, name, forbidden)
        with pytest.raises(InputError, match=f"another user's process .{process.pid}"):
            stop(tmp_path, 60)


def test_who_tries_to_hold_a_folder_in_vain_leaves_the_holders_name(tmp_path, holds):
    process = holds(tmp_path)
    with pytest.raises(InputError, match="another coordinator"), sole(tmp_path):
        pass
    assert coordinated(tmp_path)
    assert coordinator(tmp_path) == process.pid


def test_a_folder_of_nothing_is_said_to_be_one(tmp_path):
    with pytest.raises(InputError, match="holds no fleet and no run"):
        stop(tmp_path, 60)
    Fleet.create(tmp_path / "plant")
    assert stop(tmp_path / "plant", 60) == Ended(None, None, False)


def test_the_server_is_ended_too_unless_it_is_to_stay(tmp_path, holds):
    pytest.importorskip("nats", reason="needs the extra 'fleet'")
    fleet = Fleet.create(tmp_path / "plant", port=free_port())
    pid = fleet.start_server().pid
    try:
        process = holds(fleet.folder)
        assert stop(fleet.folder, 60, keep_server=True) == Ended(process.pid, None, False)
        assert fleet.server.pid == pid
        assert stop(fleet.folder, 60) == Ended(None, pid, False)
        assert fleet.server.pid is None
    finally:
        fleet.server.stop()
