"""A fleet's folder: keys only their owner can read, certificates that say no more than they should, and who is in."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from taskedge.cooperation.fleet.bundle import Bundle
from taskedge.cooperation.fleet.device_registry import Fleet
from taskedge.errors import InputError, UnknownName


@pytest.fixture
def fleet(tmp_path):
    mask = os.umask(0)  # the worst: all that protects is what we set
    yield Fleet.create(tmp_path / "plant-7", hosts=["plant.example", "10.1.2.3"], listen="0.0.0.0", port=4333)
    os.umask(mask)


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def usages(path):
    return list(certificate(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_keys_and_folders_are_the_owners_only(fleet):
    fleet.enrol("edge0")
    keys = [path for path in fleet.folder.rglob("*") if "key" in path.name]
    assert len(keys) == 4
    secret = [*keys, fleet.folder / "server.conf", fleet.folder / "fleet.json"]
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    folders = [fleet.folder, *(path for path in fleet.folder.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_the_server_is_good_for_its_names_and_nothing_else(fleet):
    server = certificate(fleet.folder / "server.pem")
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "plant.example"}
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "10.1.2.3"}
    assert usages(fleet.folder / "server.pem") == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_device_is_good_as_a_client_and_nothing_else(fleet):
    bundle = fleet.enrol("edge0")
    device = certificate(bundle / "certificate.pem")
    assert usages(bundle / "certificate.pem") == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not device.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):  # else the server would take these names for who it is
        device.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    authority = certificate(fleet.folder / "authority.pem")
    authority.public_key().verify(device.signature, device.tbs_certificate_bytes, ECDSA(SHA256()))
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_validity(fleet):
    now = datetime.now(UTC)
    device = certificate(fleet.enrol("edge0") / "certificate.pem")
    assert device.not_valid_before_utc <= now - timedelta(hours=23)  # a device's clock may be behind
    assert timedelta(days=729) < device.not_valid_after_utc - now <= timedelta(days=730)
    assert fleet.devices["edge0"].expires == device.not_valid_after_utc.isoformat()
    assert certificate(fleet.folder / "authority.pem").not_valid_after_utc - now > timedelta(days=3649)


def test_a_bundle_has_all_that_a_device_needs_and_no_more(fleet, tmp_path):
    folder = shutil.copytree(fleet.enrol("edge0"), tmp_path / "copied")
    assert {path.name for path in folder.iterdir()} == {"key.pem", "certificate.pem", "authority.pem", "fleet.json"}
    bundle = Bundle.open(folder)
    assert (bundle.fleet, bundle.name, bundle.server) == ("plant-7", "edge0", "tls://plant.example:4333")
    bundle.tls()
    assert Bundle.open(fleet.coordinator_bundle).server == "tls://127.0.0.1:4333"


def test_a_bundle_that_is_damaged_says_how(fleet, tmp_path):
    def broken(name, change):
        folder = shutil.copytree(fleet.folder / "devices" / "edge0", tmp_path / name)
        change(folder)
        return folder

    fleet.enrol("edge0")
    with pytest.raises(InputError, match="enrol` made"):
        Bundle.open(tmp_path)
    with pytest.raises(InputError, match="is missing: copy the whole folder"):
        Bundle.open(broken("a", lambda folder: (folder / "authority.pem").unlink()))
    with pytest.raises(InputError, match="chmod 600"):
        Bundle.open(broken("b", lambda folder: (folder / "key.pem").chmod(0o644)))
    with pytest.raises(InputError, match="format 9"):
        Bundle.open(broken("c", lambda folder: (folder / "fleet.json").write_text(json.dumps(FACTS | {"format": 9}))))
    with pytest.raises(InputError, match="enrol again"):
        Bundle.open(broken("d", lambda folder: (folder / "certificate.pem").write_text("x"))).tls()


FACTS = {"format": 1, "fleet": "f", "name": "n", "server": "tls://h:1"}


def test_enrol_and_revoke_are_on_the_disk(fleet):
    fleet.enrol("edge0")
    fleet.enrol("edge1")
    first = fleet.devices["edge0"].subject
    fleet.revoke("edge0")
    again = Fleet.open(fleet.folder)
    assert list(again.devices) == ["edge1"]
    assert [(entry["name"], entry["subject"]) for entry in again.revoked] == [("edge0", first)]
    config = (fleet.folder / "server.conf").read_text()
    assert first not in config
    assert again.devices["edge1"].subject in config
    assert not (fleet.folder / "devices" / "edge0").exists()
    again.enrol("edge0")
    assert again.devices["edge0"].subject != first  # so that the old key stays shut out
    assert first not in (fleet.folder / "server.conf").read_text()


def test_changes_from_two_processes_are_both_kept(fleet):
    processes = [
        multiprocessing.get_context("fork").Process(target=fleet.enrol, args=(f"edge{number}",)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    fleet.enrol("edge9")
    assert sorted(Fleet.open(fleet.folder).devices) == ["edge0", "edge1", "edge2", "edge3", "edge9"]


def test_what_cannot_be(fleet, tmp_path):
    for name in ("a.b", "a b", "*", ">", "", "coordinator", "x" * 64, "CN=x", "a,OU=b", "../x"):
        with pytest.raises(InputError, match="cannot be a name"):
            fleet.enrol(name)
    fleet.enrol("edge0")
    with pytest.raises(InputError, match="revoke it first"):
        fleet.enrol("edge0")
    with pytest.raises(UnknownName, match="did you mean 'edge0'"):
        fleet.revoke("edge1")
    with pytest.raises(InputError, match="is not empty"):
        Fleet.create(fleet.folder)
    with pytest.raises(InputError, match="cooperate init"):
        Fleet.open(tmp_path / "none")
    with pytest.raises(InputError, match="neither a host name nor an address"):
        Fleet.create(tmp_path / "new", hosts=["münchen"])
    assert not (tmp_path / "new").exists()


def test_an_enrolment_that_did_not_come_to_its_end_can_be_repeated(fleet, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(Fleet, "_save", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fleet.enrol("edge0")
    fleet = Fleet.open(fleet.folder)
    assert not fleet.devices
    bundle = fleet.enrol("edge0")
    subject = certificate(bundle / "certificate.pem").subject.rfc4514_string()
    assert sorted(subject.split(",")) == sorted(fleet.devices["edge0"].subject.split(","))
