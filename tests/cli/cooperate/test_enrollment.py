"""A fleet is created, and devices are added and removed."""

from __future__ import annotations

import json
import re
import shutil
import stat

import pytest

from taskedge.cooperation.fleet import certificates
from taskedge.cooperation.fleet.device_registry import DeviceRegistry


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_init_enrol_and_revoke(taskedge, here):
    ended = taskedge("cooperate", "init", "--name", "plant-7", "--host", "10.0.0.5", "--listen", "0.0.0.0")
    assert ended.code == 0
    assert "next: taskedge cooperate enrol" in ended.out
    assert mode(here / "plant-7") == 0o700
    assert mode(here / "plant-7" / "authority.key") == mode(here / "plant-7" / "server.key") == 0o600
    ended = taskedge("cooperate", "enrol", "jetson-1")
    assert ended.code == 0
    bundle = here / "plant-7" / "devices" / "jetson-1"
    assert ended.out.startswith("plant-7/devices/jetson-1: the keys of jetson-1\n")
    assert "taskedge cooperate join --bundle jetson-1 " in ended.out
    assert (mode(bundle), mode(bundle / "key.pem")) == (0o700, 0o600)
    assert json.loads((bundle / "fleet.json").read_text())["server"] == "tls://10.0.0.5:4222"
    assert "jetson-1' is enrolled already" in taskedge("cooperate", "enrol", "jetson-1", "--folder", "plant-7").err
    status = json.loads(taskedge("cooperate", "status", "--json").out)
    assert status["fleet"] == "plant-7"
    assert status["server"] == {"address": "0.0.0.0:4222", "runs": False}
    assert [(device["name"], device["present"]) for device in status["devices"]] == [("jetson-1", None)]
    assert status["run"] is None
    ended = taskedge("cooperate", "revoke", "jetson-1")
    assert "jetson-1 is out of fleet plant-7: the server does not run now" in ended.out
    assert not bundle.exists()
    assert DeviceRegistry.open(here / "plant-7").devices == {}
    assert "no devices" in taskedge("cooperate", "status").out


def test_renew_says_until_when(taskedge, here):
    taskedge("cooperate", "init", "--name", "plant")
    key = (here / "plant" / "server.key").read_bytes()
    ended = taskedge("cooperate", "renew")
    assert ended.code == 0, ended.err
    assert re.fullmatch(r"plant: new keys for server and coordinator, valid until \d{4}-\d\d-\d\d\n", ended.out)
    assert (here / "plant" / "server.key").read_bytes() != key


def test_an_output_that_cannot_be_written_is_refused_before_keys_are_made(taskedge, here, monkeypatch):
    (here / "file").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "create_authority", lambda *_: pytest.fail("keys were made"))
        ended = taskedge("cooperate", "init", "--name", "plant", "--folder", "file")
        assert (ended.code, "file is a file: name a new folder" in ended.err) == (2, True)
        ended = taskedge("cooperate", "init", "--name", "plant", "--folder", "missing/plant")
        assert (ended.code, "there is no folder missing" in ended.err) == (2, True)
    taskedge("cooperate", "init", "--name", "plant")
    shutil.rmtree(here / "plant" / "devices")
    monkeypatch.setattr(certificates, "create_client_identity", lambda *_: pytest.fail("keys were made"))
    ended = taskedge("cooperate", "enrol", "jetson-1", "--folder", "plant")
    assert (ended.code, "there is no folder plant/devices" in ended.err) == (2, True)
