"""Devices and servers are killed, frozen, cut off and started again: real processes, with mutual TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from device_process import Device, processes
from linked_fleets import SECONDS, over_nats, started

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink

pytestmark = pytest.mark.slow


@pytest.fixture
def fleet(tmp_path):
    fleet, server = started(tmp_path / "fleet", "edge0", "edge1")
    yield fleet
    server.stop()


@pytest.fixture
def devices(fleet, tmp_path):
    """Two devices, each with its copy of its bundle."""
    running = {
        name: Device(shutil.copytree(fleet.folder / "devices" / name, tmp_path / name)) for name in ("edge0", "edge1")
    }
    yield running
    for device in running.values():
        device.end()


def task(number: int, seconds: float = 0) -> Message:
    return Message("task", {"n": number, "seconds": seconds})


BOTH = (("edge0", "joined"), ("edge1", "joined"))


def test_a_killed_device_leaves_at_once_and_can_rejoin(fleet, devices):
    async def run():
        async with over_nats(fleet) as around:
            await around.hears(*BOTH)
            asked = asyncio.create_task(around.coordinator.request("edge0", task(1, 60), 60))
            while devices["edge0"].began != [1]:
                await asyncio.sleep(0.02)
            devices["edge0"].kill()
            await around.hears(("edge0", "left"), seconds=2)
            with pytest.raises(DeviceGone, match="went away"):
                await asyncio.wait_for(asked, 1)
            with pytest.raises(DeviceGone, match="not connected"):
                await around.coordinator.request("edge0", task(2), SECONDS)
            await around.coordinator.request("edge1", task(3), SECONDS)
            devices["edge0"].start()
            await around.hears(("edge0", "joined"))
            answer = await around.coordinator.request("edge0", task(4), SECONDS)
            assert answer.header == {"n": 4, "pid": devices["edge0"].pid}

    asyncio.run(run())


def test_a_frozen_device_does_not_begin_expired_tasks_and_its_late_answer_is_not_used(fleet, devices):
    async def run():
        async with over_nats(fleet) as around:
            await around.hears(*BOTH)
            asked = asyncio.create_task(around.coordinator.request("edge0", task(1, 0.3), 1))
            while devices["edge0"].began != [1]:
                await asyncio.sleep(0.02)
            devices["edge0"].freeze()  # in the middle of it
            with pytest.raises(NoAnswer):
                await asked
            with pytest.raises(NoAnswer):  # comes while it is frozen
                await around.coordinator.request("edge0", task(2), 0.5)
            devices["edge0"].thaw()
            answer = await around.coordinator.request("edge0", task(3), SECONDS)
            assert answer.header == {"n": 3, "pid": devices["edge0"].pid}
            assert devices["edge0"].began == [1, 3]
            assert around.coordinator.traffic("edge0")[1].messages["late"] == 1

            devices["edge0"].freeze()  # long enough for the server to end its connection
            with pytest.raises(DeviceGone):
                await around.coordinator.request("edge0", task(4), 20)
            await around.hears(("edge0", "left"))
            await around.coordinator.request("edge1", task(5), SECONDS)
            devices["edge0"].thaw()
            await around.hears(("edge0", "joined"))
            answer = await around.coordinator.request("edge0", task(6), SECONDS)
            assert answer.header["pid"] == devices["edge0"].pid
            assert devices["edge0"].began == [1, 3, 6]

    asyncio.run(run())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_of_the_server_loses_no_answer(fleet, devices, how):
    async def run():
        async with over_nats(fleet) as around:
            await around.hears(*BOTH)
            asked = [asyncio.create_task(around.coordinator.request(name, task(1, 1.0), 20)) for name in devices]
            while any(device.began != [1] for device in devices.values()):
                await asyncio.sleep(0.02)
            os.kill(fleet.server.pid, how)
            while fleet.server.pid is not None:
                await asyncio.sleep(0.02)
            before = fleet.server.pid
            fleet.start_server()
            assert fleet.server.pid != before
            answers = await asyncio.gather(*asked)
            assert [answer.header["pid"] for answer in answers] == [device.pid for device in devices.values()]
            for name in devices:
                await around.coordinator.request(name, task(2), SECONDS)
            assert [device.began for device in devices.values()] == [[1, 2], [1, 2]]
            await around.hears_nothing(0.1)  # no device counts as gone

    asyncio.run(run())


def test_devices_are_revoked_and_enrolled_while_others_work(fleet, devices, tmp_path):
    async def run():
        async with over_nats(fleet) as around:
            await around.hears(*BOTH)
            busy = asyncio.create_task(around.coordinator.request("edge1", task(1, 1.0), SECONDS))
            begin = time.monotonic()
            await asyncio.to_thread(DeviceRegistry.open(fleet.folder).revoke, "edge0")
            await around.hears(("edge0", "left"), seconds=2)
            assert time.monotonic() - begin < 2
            assert (await busy).header["pid"] == devices["edge1"].pid  # the other device is not disturbed

            third = Device(shutil.copytree(fleet.enroll("edge2"), tmp_path / "third"))
            renewed = fleet.enroll("edge0")  # the same name, a new key
            try:
                await around.hears(("edge2", "joined"))
                await around.coordinator.request("edge2", task(2), SECONDS)
                await around.hears_nothing(2.5)  # with its old key the revoked device cannot connect
                shutil.copytree(renewed, tmp_path / "edge0", dirs_exist_ok=True)
                await around.hears(("edge0", "joined"))  # with the new one it comes back, still warm
                answer = await around.coordinator.request("edge0", task(3), SECONDS)
                assert answer.header["pid"] == devices["edge0"].pid
            finally:
                third.end()

    asyncio.run(run())


def test_keys_of_server_and_coordinator_are_renewed_while_they_run(fleet, devices):
    async def run():
        async with over_nats(fleet) as around:
            await around.hears(*BOTH)
            keys = [fleet.folder / "server.key", fleet.coordinator_bundle / "key.pem"]
            before = [key.read_bytes() for key in keys]
            await asyncio.to_thread(fleet.renew)
            assert not {key.read_bytes() for key in keys} & set(before)
            for name in devices:
                answer = await around.coordinator.request(name, task(1), SECONDS)
                assert answer.header["pid"] == devices[name].pid
            await around.hears_nothing(0.1)

    asyncio.run(run())


def test_a_coordinator_that_dies_leaves_server_and_devices_in_place(tmp_path):
    folder = tmp_path / "fleet"
    coordinator = processes.Process(target=_start_and_wait, args=(folder,))
    coordinator.start()
    while not (folder / "ready").exists():
        assert coordinator.is_alive()
        time.sleep(0.02)
    fleet = DeviceRegistry.open(folder)
    device = Device(folder / "devices" / "edge0")
    try:
        before = fleet.server.pid
        assert before is not None
        coordinator.kill()
        coordinator.join()
        assert DeviceRegistry.open(folder).start_server().pid == before

        async def resumed():
            link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
            async with asyncio.timeout(SECONDS):
                assert (await anext(link.presence())).event == "joined"
            await link.request("edge0", task(1), SECONDS)
            await link.close()

        asyncio.run(resumed())
        asyncio.run(resumed())  # the second finds the device there already
    finally:
        device.end()
        fleet.server.stop()
        assert fleet.server.pid is None


def _start_and_wait(folder):
    started(folder, "edge0")
    (folder / "ready").touch()
    time.sleep(60)
