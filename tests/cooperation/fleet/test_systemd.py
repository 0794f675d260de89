"""Units have the sections, the one command line and the unchanged paths that systemd reads."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from taskedge.cooperation.fleet.systemd import device_unit, server_unit
from taskedge.errors import InputError


def read(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(unit)
    return parser


def test_a_device_is_started_again_however_it_ended():
    unit = read(device_unit("jetson-1", ["/usr/bin/taskedge", "cooperate", "join", Path("/etc/my fleet/100%")], "edge"))
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert unit["Service"]["ExecStart"] == '/usr/bin/taskedge cooperate join "/etc/my fleet/100%%"'
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] == "edge"


def test_a_server_gets_its_configuration_and_may_write_to_its_folder(tmp_path):
    unit = read(server_unit("plant-7", tmp_path, Path("/usr/bin/nats-server"), "fleet"))
    assert unit["Service"]["ExecStart"] == f"/usr/bin/nats-server -c {tmp_path}/server.conf"
    assert unit["Service"]["ReadWritePaths"] == str(tmp_path)
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


def test_nothing_in_a_word_is_expanded_or_starts_a_line():
    command = read(device_unit("d", ["/bin/x", "$HOME", 'say "hi"', "a\\b", ""], "u"))["Service"]["ExecStart"]
    assert command == '/bin/x $$HOME "say \\"hi\\"" "a\\\\b" ""'
    with pytest.raises(InputError, match="control characters"):
        device_unit("d", ["/bin/x", "a\nExecStartPre=/bin/evil"], "u")
    with pytest.raises(InputError, match="absolute path"):
        device_unit("d", ["taskedge"], "u")
