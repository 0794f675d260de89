"""The coordinator's link refuses bad answers, sends undelivered tasks again, and notices silent devices."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from bare_clients import BareClient, bundle_of, with_other_server
from linked_fleets import SECONDS, over_nats, started

from taskedge.cooperation.protocol.chunking import split_message
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.links import NoAnswer
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("coordinator") / "fleet", "edge0", "edge1")
    yield fleet
    server.stop()


def test_an_answer_of_another_device_is_not_taken(fleet):
    """A device that guesses the token of a request can still answer only under its own name."""

    async def run():
        edge0, edge1 = BareClient(bundle_of(fleet, "edge0")), BareClient(bundle_of(fleet, "edge1"))
        async with over_nats(fleet) as around, edge0 as asked, edge1 as forger:
            await asked.subscribe("taskedge.task.edge0")
            await asked.report()
            await around.hears(("edge0", "joined"))
            waiting = asyncio.create_task(around.coordinator.request("edge0", Message("task"), 0.5))
            await asked.received_some()
            forged = asked.received[0].reply.replace("edge0", "edge1")
            await forger.publish(forged, next(split_message(Message("forged").pack())))
            with pytest.raises(NoAnswer):
                await waiting
            assert around.coordinator.traffic("edge1")[1].messages == {"late": 1}

    asyncio.run(run())


def bad_answers() -> dict[str, list[bytes]]:
    good = list(split_message(Message("answer", {"x": "y" * 100}).pack(), 40))
    damaged = good[-1][:-1] + bytes([good[-1][-1] ^ 1])
    oversize = good[0][:11] + (65 * 2**20).to_bytes(8, "little") + good[0][19:]
    return {
        "out of order": [good[0], good[2]],
        "repeated": [good[0], good[1], good[1]],
        "the first is missing": [good[1]],
        "damaged": [*good[:-1], damaged],
        "announces too much": [oversize],
        "no chunk": [b"noise"],
        "pickle": [next(split_message(b"\x80\x04cos\nsystem\n."))],
    }


@pytest.mark.parametrize("how", bad_answers())
def test_a_bad_answer_is_refused_and_the_next_is_taken(fleet, how):
    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge0")) as device:
            await device.subscribe("taskedge.task.edge0")
            await device.report()
            await around.hears(("edge0", "joined"))
            for answers in (bad_answers()[how], list(split_message(Message("answer").pack(), 10))):
                device.received.clear()
                waiting = asyncio.create_task(around.coordinator.request("edge0", Message("task"), SECONDS))
                await device.received_some()
                for chunk in answers:
                    await device.publish(device.received[0].reply, chunk)
                if answers == bad_answers()[how]:
                    with pytest.raises(MessageError):
                        await waiting
                    assert around.coordinator.traffic("edge0")[1].messages["refused"] == 1
                else:
                    assert (await waiting).kind == "answer"

    asyncio.run(run())


def test_an_undelivered_task_is_sent_again(fleet):
    """A device that reconnects may get a task after its report and before it subscribes."""

    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge0")) as device:
            await device.report()
            await around.hears(("edge0", "joined"))
            waiting = asyncio.create_task(around.coordinator.request("edge0", Message("task"), SECONDS))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await device.subscribe("taskedge.task.edge0")
            await device.report()
            await device.received_some()
            await device.publish(device.received[0].reply, next(split_message(Message("answer").pack())))
            assert (await waiting).kind == "answer"

    asyncio.run(run())


def test_the_late_end_of_a_replaced_connection_changes_nothing(fleet):
    async def run():
        async with over_nats(fleet) as around:
            first = await BareClient(bundle_of(fleet, "edge0")).__aenter__()
            await first.report()
            await around.hears(("edge0", "joined"))
            async with BareClient(bundle_of(fleet, "edge0")) as second:  # the same process, over a new connection
                await second.report()
                async with asyncio.timeout(SECONDS):  # messages of two connections arrive in any order
                    while around.coordinator.traffic("edge0")[1].messages["here"] < 2:
                        await asyncio.sleep(0.01)
                await first.client.close()
                await around.hears_nothing(0.3)
            await around.hears(("edge0", "left"))

    asyncio.run(run())


async def ask(around, device):
    started = time.monotonic()
    await around.coordinator.request(device, Message("task"), SECONDS)
    return time.monotonic() - started


def fresh_report(number):
    return json.dumps({"process": f"p{number}", "connection": number}).encode()


FLOODS = {
    "reports with fresh ids": lambda n: ("here", fresh_report(n)),
    "answers that nobody waits for": lambda n: (f"answer.{n}", b"x" * 100),
    "garbage": lambda n: ("answer.1", bytes(2**20)),
    "reports of a mebibyte": lambda n: ("here", b"[" * 2**20),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_one_device_is_nobody_elses(fleet, kind):
    """It is not listened to after its budget: few events, a bounded time for the others, and no memory."""

    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as flooding:
            around.device("edge0")
            await around.hears(("edge0", "joined"))
            count = 60 if "garbage" in kind or "mebibyte" in kind else 2000
            for number in range(count):
                channel, data = FLOODS[kind](number)
                await flooding.client.publish(f"taskedge.up.edge1.{channel}", data)
            await flooding.client.flush()
            assert max([await ask(around, "edge0") for _ in range(5)]) < SECONDS
            events = []
            async with asyncio.timeout(SECONDS):
                while not events or events[-1].event != "flooded":
                    events.append(await anext(around._presence))
            assert len(events) <= 25  # joins are limited beside
            assert {event.device for event in events} == {"edge1"}
            assert "it is not listened to for 10 s" in events[-1].why
            seen = around.coordinator.traffic("edge1")[1]
            assert sum(seen.messages.values()) <= 200
            assert sum(seen.bytes.values()) <= 4 * 2**20
            await around.hears_nothing(0.1)

    asyncio.run(run())


def test_a_device_is_listened_to_again_after_its_penalty(fleet, monkeypatch):
    monkeypatch.setattr("taskedge.cooperation.transport.flood_guard.MIN_PENALTY_SECONDS", 0.3)

    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as flooding:
            for number in range(300):
                await flooding.client.publish("taskedge.up.edge1.answer.1", bytes([number % 256]))
            await flooding.client.flush()
            await around.hears(("edge1", "flooded"))
            async with asyncio.timeout(SECONDS):
                while around.coordinator._guards["edge1"].penalty is not None:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
            await flooding.report()
            await around.hears(("edge1", "joined"))

    asyncio.run(run())


def test_a_device_that_comes_and_goes_too_often_stays_away(fleet):
    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as changing:
            for number in range(40):
                await changing.publish("taskedge.up.edge1.here", fresh_report(number))
            events = []
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        events.append((await anext(around._presence)).event)
            assert 1 <= events.count("joined") <= 10

    asyncio.run(run())


def test_a_channel_that_is_not_known_is_not_read(fleet):
    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as device:
            await device.publish("taskedge.up.edge1.say.1", next(split_message(Message("talk").pack())))
            await device.violations("publish", 1)
            await around.hears_nothing(0.1)

    asyncio.run(run())


@pytest.mark.slow
def test_a_device_that_falls_silent_is_gone(fleet, monkeypatch):
    """As with a cut line: the server still takes the connection for open."""
    monkeypatch.setattr("taskedge.cooperation.transport.nats.coordinator_link.HERE_SECONDS", 0.3)
    monkeypatch.setattr("taskedge.cooperation.transport.nats.device_link.HERE_SECONDS", 0.3)
    monkeypatch.setattr("taskedge.cooperation.transport.nats.coordinator_link.GONE_SECONDS", 1.0)

    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge0")) as silent:
            around.device("edge1")
            await silent.report()
            await around.hears(("edge0", "joined"), ("edge1", "joined"))
            await around.hears(("edge0", "left"))
            await around.hears_nothing(1.2)  # a device that reports stays
            await silent.report()
            await around.hears(("edge0", "joined"))

    asyncio.run(run())


def test_few_of_many_messages_are_handed_to_the_server_at_once(fleet):
    async def run():
        link, under_way, most = NatsCoordinatorLink(fleet.coordinator_bundle), 0, 0

        async def send(*_, **__):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

        link._connection.send = send
        await asyncio.gather(*(link._send(f"edge{number}", "token", b"") for number in range(200)))
        assert most == 16

    asyncio.run(run())


@pytest.mark.slow
def test_a_coordinator_that_is_behind_takes_no_device_for_gone(fleet, monkeypatch):
    """With a thousand devices, reports wait behind answers. They are read before silence counts."""
    monkeypatch.setattr("taskedge.cooperation.transport.nats.coordinator_link.HERE_SECONDS", 0.3)
    monkeypatch.setattr("taskedge.cooperation.transport.nats.device_link.HERE_SECONDS", 0.1)
    monkeypatch.setattr("taskedge.cooperation.transport.nats.coordinator_link.GONE_SECONDS", 0.5)

    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge0")) as busy:
            around.device("edge1")
            await busy.report()
            await around.hears(("edge0", "joined"), ("edge1", "joined"))
            client = await around.coordinator._connection.client()
            process = client._process_msg

            async def slow(sid, subject, *rest):
                if b"edge0" in subject:
                    await asyncio.sleep(0.05)
                await process(sid, subject, *rest)

            client._process_msg = slow
            for _ in range(20):
                await busy.report()
            await around.hears_nothing(1.2)

    asyncio.run(run())


def test_a_missing_server_is_reported(fleet, tmp_path):
    bundle = with_other_server(fleet, tmp_path / "edge0", free_port())
    (bundle / "devices.json").write_text('{"devices": []}')
    with pytest.raises(InputError, match=r"no connection to the server .*127\.0\.0\.1.*is it running"):
        asyncio.run(NatsCoordinatorLink.connect(bundle, seconds=0.3))
