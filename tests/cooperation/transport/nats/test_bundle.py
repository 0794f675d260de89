"""A bundle has all that a device needs, and one that is damaged says how."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.errors import InputError


@pytest.fixture
def bundle(tmp_path):
    registry = DeviceRegistry.create(tmp_path / "plant-7", hosts=["plant.example"], listen="0.0.0.0", port=4333)
    return registry.enroll("edge0")


def test_a_copied_bundle_is_complete(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "copied")
    assert {path.name for path in folder.iterdir()} == {"key.pem", "certificate.pem", "authority.pem", "fleet.json"}
    opened = Bundle.open(folder)
    assert (opened.fleet, opened.name, opened.server) == ("plant-7", "edge0", "tls://plant.example:4333")
    opened.tls()


FAULTS = {
    "is missing: copy the whole folder": lambda folder: (folder / "authority.pem").unlink(),
    "chmod 600": lambda folder: (folder / "key.pem").chmod(0o644),
    "format 9": lambda folder: (folder / "fleet.json").write_text(
        json.dumps({"format": 9, "fleet": "f", "name": "n", "server": "tls://h:1"})
    ),
    "is no fleet.json of a bundle": lambda folder: (folder / "fleet.json").write_text("{"),
    "enrol` made": lambda folder: (folder / "fleet.json").unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_bundle_is_refused(bundle, fault):
    FAULTS[fault](bundle)
    with pytest.raises(InputError, match=fault):
        Bundle.open(bundle)


def test_a_damaged_certificate_is_refused_when_it_is_used(bundle):
    (bundle / "certificate.pem").write_text("x")
    with pytest.raises(InputError, match="enrol again"):
        Bundle.open(bundle).tls()
