"""The folder of a fleet: keys that only their owner can read, and every change on disk."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from contextlib import suppress

import pytest

pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from cryptography import x509

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.errors import InputError, UnknownName


@pytest.fixture
def registry(tmp_path):
    mask = os.umask(0)  # the worst case: only the modes that the registry sets protect the files
    yield DeviceRegistry.create(tmp_path / "plant-7", hosts=["plant.example", "10.1.2.3"], listen="0.0.0.0", port=4333)
    os.umask(mask)


def subject_of(bundle):
    certificate = x509.load_pem_x509_certificate((bundle / "certificate.pem").read_bytes())
    return sorted(certificate.subject.rfc4514_string().split(","))


def test_keys_and_folders_are_their_owners_only(registry):
    registry.enroll("edge0")
    keys = [path for path in registry.folder.rglob("*") if "key" in path.name]
    assert len(keys) == 4
    secret = [*keys, registry.folder / "server.conf", registry.folder / "fleet.json"]
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    folders = [registry.folder, *(path for path in registry.folder.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_bundles_name_the_server_as_their_holders_reach_it(registry):
    device = Bundle.open(registry.enroll("edge0"))
    assert (device.fleet, device.name, device.server) == ("plant-7", "edge0", "tls://plant.example:4333")
    assert subject_of(device.folder) == sorted(registry.devices["edge0"].subject.split(","))
    assert Bundle.open(registry.coordinator_bundle).server == "tls://127.0.0.1:4333"


def test_enroll_and_revoke_are_on_disk(registry):
    registry.enroll("edge0")
    registry.enroll("edge1")
    first = registry.devices["edge0"].subject
    registry.revoke("edge0")
    again = DeviceRegistry.open(registry.folder)
    assert list(again.devices) == ["edge1"]
    assert [(entry["name"], entry["subject"]) for entry in again.revoked] == [("edge0", first)]
    config = (registry.folder / "server.conf").read_text()
    assert first not in config
    assert again.devices["edge1"].subject in config
    assert not (registry.folder / "devices" / "edge0").exists()
    again.enroll("edge0")
    assert again.devices["edge0"].subject != first  # so the server refuses the old key
    assert first not in (registry.folder / "server.conf").read_text()


def test_renew_replaces_the_keys_of_server_and_coordinator_only(registry):
    registry.enroll("edge0")
    names = ("server.key", "server.pem", "coordinator/key.pem", "coordinator/certificate.pem")
    kept = ("authority.key", "authority.pem", "devices/edge0/key.pem", "devices/edge0/certificate.pem")
    before = {name: (registry.folder / name).read_bytes() for name in (*names, *kept)}
    old_subject = registry.coordinator.subject
    registry.renew()
    after = {name: (registry.folder / name).read_bytes() for name in before}
    assert [name for name in before if before[name] != after[name]] == list(names)
    config = (registry.folder / "server.conf").read_text()
    assert old_subject not in config
    assert DeviceRegistry.open(registry.folder).coordinator.subject in config
    assert (registry.folder / "coordinator" / "key.pem").stat().st_mode & 0o777 == 0o600
    Bundle.open(registry.coordinator_bundle).tls()


def test_changes_of_two_processes_are_both_kept(registry):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=registry.enroll, args=(f"edge{number}",)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    registry.enroll("edge9")
    assert sorted(DeviceRegistry.open(registry.folder).devices) == ["edge0", "edge1", "edge2", "edge3", "edge9"]


@pytest.mark.parametrize("name", ["a.b", "a b", "*", ">", "", "coordinator", "x" * 64, "CN=x", "a,OU=b", "../x"])
def test_a_name_that_would_change_certificates_or_subjects_is_refused(registry, name):
    with pytest.raises(InputError, match="cannot be a name"):
        registry.enroll(name)


def test_a_name_is_enrolled_once_and_revoked_if_enrolled(registry):
    registry.enroll("edge0")
    with pytest.raises(InputError, match="revoke it first"):
        registry.enroll("edge0")
    with pytest.raises(UnknownName, match="did you mean 'edge0'"):
        registry.revoke("edge1")


def test_a_folder_is_created_once_and_opened_if_it_is_a_fleets(registry, tmp_path):
    with pytest.raises(InputError, match="is not empty"):
        DeviceRegistry.create(registry.folder)
    with pytest.raises(InputError, match="cooperate init"):
        DeviceRegistry.open(tmp_path / "none")
    (registry.folder / "fleet.json").write_text('{"format": 9}')
    with pytest.raises(InputError, match="another format"):
        DeviceRegistry.open(registry.folder)
    (registry.folder / "fleet.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"is not the fleet\.json of a fleet"):
        DeviceRegistry.open(registry.folder)


def test_a_host_that_cannot_be_used_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="neither a host name nor an address"):
        DeviceRegistry.create(tmp_path / "new", hosts=["münchen"])
    assert not (tmp_path / "new").exists()


def test_an_interrupted_enrollment_can_be_repeated(registry, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(DeviceRegistry, "_save", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registry.enroll("edge0")
    registry = DeviceRegistry.open(registry.folder)
    assert not registry.devices
    bundle = registry.enroll("edge0")
    assert subject_of(bundle) == sorted(registry.devices["edge0"].subject.split(","))


def test_keys_are_renewed_under_a_running_server_and_coordinator(tmp_path):
    pytest.importorskip("nats", reason="needs the extra 'fleet'")
    from linked_fleets import over_nats, started

    registry, server = started(tmp_path / "plant", "edge0")

    async def check():
        async with over_nats(registry) as around:
            around.device("edge0")
            await around.hears(("edge0", "joined"))
            await asyncio.to_thread(registry.renew)
            async with asyncio.timeout(20):
                while True:
                    with suppress(DeviceGone, NoAnswer):  # while the coordinator connects again
                        return await around.coordinator.request("edge0", Message("question", {"n": 1}), 2.0)

    try:
        assert asyncio.run(check()).header["n"] == 1
    finally:
        server.stop()
