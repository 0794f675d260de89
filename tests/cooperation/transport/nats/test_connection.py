"""A connection sends through whichever client is connected, and reports why there is none."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from bare_clients import BareClient, bundle_of, with_other_server
from linked_fleets import SECONDS, started

from taskedge.cooperation.protocol.chunking import ChunkAssembler
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.connection import Connection
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError

SUBJECT = "taskedge.up.edge0.answer.1"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("connection") / "fleet", "edge0")
    yield fleet
    server.stop()


def connection(fleet, connected=None):
    async def on_connect(client):
        if connected is not None:
            connected.append(client)

    return Connection(bundle_of(fleet, "edge0"), {}, on_connect)


def test_a_large_message_is_sent_in_chunks(fleet):
    async def run():
        sender = connection(fleet)
        async with BareClient(Bundle.open(fleet.coordinator_bundle)) as receiver:
            await receiver.subscribe(SUBJECT)
            await sender.send(SUBJECT, bytes(2**21 + 3))
            await receiver.received_some(3)
        await sender.close()
        assembler = ChunkAssembler()
        assert [assembler.add(message.data) for message in receiver.received] == [None, None, bytes(2**21 + 3)]

    asyncio.run(run())


def test_a_message_is_sent_over_the_next_client_if_one_breaks(fleet):
    async def run():
        connected = []
        sender = connection(fleet, connected)
        async with BareClient(Bundle.open(fleet.coordinator_bundle)) as receiver:
            await receiver.subscribe(SUBJECT)
            await (await sender.client()).close()
            await asyncio.wait_for(sender.send(SUBJECT, b"x"), SECONDS)
            await receiver.received_some()
        assert len(connected) == 2
        assert not await sender.caught_up(connected[0])
        assert await sender.caught_up(connected[1])
        await sender.close()

    asyncio.run(run())


def test_a_round_trip_that_is_given_up_leaves_the_connection_alive(fleet):
    """Its pong comes when nobody waits for it any more, which must not end the task that reads the connection."""

    async def run():
        sender = connection(fleet)
        client = await sender.client()
        for _ in range(5):
            with suppress(TimeoutError):
                await client.flush(timeout=1e-9)
            async with asyncio.timeout(SECONDS):
                await sender.round_trip(client)
        assert not client.is_closed
        await sender.close()

    asyncio.run(run())


def test_subscriptions_come_and_go_on_one_connection_and_on_the_next(fleet):
    async def run():
        heard = []

        async def on_message(client, msg):
            heard.append(msg.subject)

        listener = Connection(Bundle.open(fleet.coordinator_bundle), {}, lambda client: asyncio.sleep(0))
        subjects = ["taskedge.up.edge0.answer.1", "taskedge.up.edge0.answer.2"]

        async def hears(*expected):
            heard.clear()
            await listener.round_trip(await listener.client())
            async with BareClient(bundle_of(fleet, "edge0")) as sender:
                for subject in subjects:
                    await sender.publish(subject)
            async with asyncio.timeout(SECONDS):
                while len(heard) < len(expected):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert sorted(heard) == sorted(expected)

        await listener.subscribe(subjects[0], on_message)  # before it is connected
        await listener.client()
        await hears(subjects[0])
        await listener.subscribe(subjects[1], on_message)
        await hears(*subjects)
        await listener.unsubscribe(subjects[0])
        await hears(subjects[1])
        await (await listener.client()).close()  # the next connection has the same ones
        await asyncio.sleep(0.1)
        await hears(subjects[1])
        await listener.close()

    asyncio.run(run())


def test_a_closed_connection_is_not_used_again(fleet):
    async def run():
        sender = connection(fleet)
        await sender.client()
        await sender.close()
        with pytest.raises(InputError, match="closed"):
            await sender.client()

    asyncio.run(run())


def test_the_trouble_of_a_connection(fleet, tmp_path):
    async def run():
        bundle = Bundle.open(with_other_server(fleet, tmp_path / "edge0", free_port()))
        sender = Connection(bundle, {}, lambda client: asyncio.sleep(0))
        assert sender.trouble is None
        sender.start()
        async with asyncio.timeout(SECONDS):
            while sender.trouble is None:
                await asyncio.sleep(0.01)
        assert bundle.server in sender.trouble
        await sender.close()

    asyncio.run(run())


def test_asyncios_warning_about_nats_streams_is_dropped(fleet):
    connection(fleet)
    record = logging.LogRecord("asyncio", logging.WARNING, "", 0, "returning true from eof_received() has no", (), None)
    assert not logging.getLogger("asyncio").filter(record)
