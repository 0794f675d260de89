"""Stopping a coordinator from outside: the one that works with the folder, and no other process."""

from __future__ import annotations

import os
import subprocess

import pytest

from taskedge.cooperation.fleet.coordinator_lock import coordinator_pid
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.stop_fleet import StoppedProcesses, stop_fleet
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError, TaskEdgeError


def with_a_run(folder):
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "run.json").write_text("{}")
    return folder


def test_the_coordinator_gets_sigterm_and_its_run_stays(tmp_path, start_coordinator):
    folder = with_a_run(tmp_path)
    process = start_coordinator(folder)
    assert stop_fleet(folder, 60) == StoppedProcesses(process.pid, None, True)
    assert process.wait(60) == -15
    assert coordinator_pid(folder) is None
    assert stop_fleet(folder, 60) == StoppedProcesses(None, None, True)


def test_a_coordinator_that_does_not_end_is_named_and_left(tmp_path, start_coordinator):
    process = start_coordinator(tmp_path, "ignores SIGTERM")
    with pytest.raises(TaskEdgeError, match=rf"process {process.pid}\) got SIGTERM and still runs after 0\.3 s"):
        stop_fleet(tmp_path, 0.3)
    assert process.poll() is None


def test_a_process_that_does_not_hold_the_lock_gets_no_signal(tmp_path, start_coordinator):
    """As when a process id belongs to another process by now."""
    process, other = start_coordinator(tmp_path), subprocess.Popen(["/bin/sleep", "600"])
    try:
        for written in (str(other.pid), "", "999999999"):
            (tmp_path / ".coordinator").write_text(written)
            with pytest.raises(InputError, match="does not say which process it is"):
                stop_fleet(tmp_path, 60)
        assert other.poll() is None
        assert process.poll() is None
    finally:
        other.kill()
        other.wait()


def test_another_users_coordinator_is_left(tmp_path, start_coordinator, monkeypatch):
    process = start_coordinator(tmp_path)

    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    with pytest.raises(InputError, match=f"another user's process .{process.pid}"):
        stop_fleet(tmp_path, 60)


def test_a_folder_without_fleet_and_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no fleet and no run"):
        stop_fleet(tmp_path, 60)
    DeviceRegistry.create(tmp_path / "plant")
    assert stop_fleet(tmp_path / "plant", 60) == StoppedProcesses(None, None, False)


@pytest.mark.slow
def test_the_server_is_stopped_too_unless_it_is_kept(tmp_path, start_coordinator):
    pytest.importorskip("nats", reason="needs the extra 'fleet'")
    registry = DeviceRegistry.create(tmp_path / "plant", port=free_port())
    pid = registry.start_server().pid
    try:
        process = start_coordinator(registry.folder)
        assert stop_fleet(registry.folder, 60, keep_server=True) == StoppedProcesses(process.pid, None, False)
        assert registry.server.pid == pid
        assert stop_fleet(registry.folder, 60) == StoppedProcesses(None, pid, False)
        assert registry.server.pid is None
    finally:
        registry.server.stop()
