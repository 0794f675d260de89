"""A device's link reports, answers each task once, and skips tasks that are broken, repeated or forgotten."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from bare_clients import BareClient, bundle_of
from linked_fleets import SECONDS, started

from taskedge.cooperation.protocol.chunking import ChunkAssembler, split_message
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.errors import InputError

ANSWERS, REPORTS = "taskedge.up.edge0.answer.*", "taskedge.up.edge0.here"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("device") / "fleet", "edge0")
    yield fleet
    server.stop()


def chunks(number):
    return list(split_message(Message("task", {"n": number}).pack(), 20))


async def serve(fleet, scenario):
    """Run a scenario with a bare coordinator, a serving device, and the numbers of its tasks."""
    handled, first = [], asyncio.Event()

    async def handler(message):
        handled.append(message.header["n"])
        if message.header["n"] == 0:
            await first.wait()
        return Message("answer", message.header)

    link = NatsDeviceLink(bundle_of(fleet, "edge0").folder)
    async with BareClient(Bundle.open(fleet.coordinator_bundle)) as coordinator:
        await coordinator.subscribe(REPORTS)
        serving = asyncio.create_task(link.serve(handler))
        await coordinator.received_some()
        coordinator.received.clear()
        await coordinator.subscribe(ANSWERS)
        try:
            await asyncio.wait_for(scenario(coordinator, first), SECONDS)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await link.close()
    return handled


async def send_task(coordinator, number, some=None):
    for chunk in some or chunks(number):
        await coordinator.publish("taskedge.task.edge0", chunk, reply=f"taskedge.up.edge0.answer.{number}")


async def answer_to(coordinator, number):
    while True:
        for message in coordinator.received:
            if message.subject == f"taskedge.up.edge0.answer.{number}":
                return Message.unpack(ChunkAssembler().add(message.data))
        await asyncio.sleep(0.01)


def test_it_reports_when_asked(fleet):
    async def scenario(coordinator, first):
        await coordinator.publish("taskedge.who")
        await coordinator.received_some()
        assert json.loads(coordinator.received[0].data).keys() == {"process", "connection"}

    assert asyncio.run(serve(fleet, scenario)) == []


def test_broken_tasks_are_skipped(fleet):
    async def scenario(coordinator, first):
        await send_task(coordinator, 1, [b"noise"])
        await send_task(coordinator, 2, chunks(2)[1:])
        await send_task(coordinator, 3, list(split_message(b"no message")))
        await send_task(coordinator, 4)
        assert (await answer_to(coordinator, 4)).header == {"n": 4}

    assert asyncio.run(serve(fleet, scenario)) == [4]


def test_a_repeated_task_is_done_once_and_a_forgotten_one_not_at_all(fleet):
    async def scenario(coordinator, first):
        await send_task(coordinator, 0)
        await send_task(coordinator, 1)
        await send_task(coordinator, 2)
        await send_task(coordinator, 1)
        await coordinator.publish("taskedge.task.edge0", b"", reply="taskedge.up.edge0.answer.2")
        await send_task(coordinator, 3)
        first.set()
        assert (await answer_to(coordinator, 3)).header == {"n": 3}

    assert asyncio.run(serve(fleet, scenario)) == [0, 1, 3]


def test_an_unusable_bundle_fails_at_once(fleet, tmp_path):
    with pytest.raises(InputError):
        NatsDeviceLink(tmp_path)
