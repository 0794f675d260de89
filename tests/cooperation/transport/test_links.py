"""The promises of every link, over each transport."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
import torch

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from linked_fleets import SECONDS, echo, in_memory, over_nats, started

from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer


@pytest.fixture(scope="module")
def nats_fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("link") / "fleet", "edge0", "edge1")
    yield fleet
    server.stop()


@pytest.fixture(params=["memory", "nats"])
def around(request):
    """Makes a fleet; ``async with around() as fleet``."""
    if request.param == "memory":
        return in_memory
    fleet = request.getfixturevalue("nats_fleet")
    return partial(over_nats, fleet)


def test_a_question_and_its_answer(around):
    async def run():
        async with around() as fleet:
            fleet.device("edge0")
            fleet.device("edge1")
            await fleet.hears(("edge0", "joined"), ("edge1", "joined"))
            tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
            for device in ("edge0", "edge1", "edge0"):
                answer = await fleet.coordinator.request(
                    device, Message("task", {"to": device}, {"x": tensor}), SECONDS
                )
                assert (answer.kind, answer.header) == ("answer", {"to": device})
                assert torch.equal(answer.tensors["x"], tensor)

    asyncio.run(run())


def test_requests_to_several_devices_at_once(around):
    async def run():
        async with around() as fleet:
            fleet.device("edge0")
            fleet.device("edge1")
            await fleet.hears(("edge0", "joined"), ("edge1", "joined"))
            asked = [(device, number) for number in range(10) for device in ("edge0", "edge1")]
            answers = await asyncio.gather(
                *(
                    fleet.coordinator.request(device, Message("task", {"n": [device, number]}), SECONDS)
                    for device, number in asked
                )
            )
            assert [answer.header["n"] for answer in answers] == [list(pair) for pair in asked]

    asyncio.run(run())


def test_a_message_of_many_chunks(around):
    async def run():
        async with around() as fleet:
            fleet.device("edge0")
            await fleet.hears(("edge0", "joined"))
            large = torch.randint(0, 255, (5 * 2**20 + 7,), dtype=torch.uint8)
            one, other = await asyncio.gather(
                fleet.coordinator.request("edge0", Message("task", {"n": 1}, {"x": large}), SECONDS),
                fleet.coordinator.request("edge0", Message("task", {"n": 2}, {"x": large.flip(0)}), SECONDS),
            )
            assert (one.header["n"], other.header["n"]) == (1, 2)
            assert torch.equal(one.tensors["x"], large)
            assert torch.equal(other.tensors["x"], large.flip(0))

    asyncio.run(run())


def test_a_device_that_is_not_there(around):
    async def run():
        async with around() as fleet:
            with pytest.raises(DeviceGone, match="edge0"):
                await fleet.coordinator.request("edge0", Message("task"), SECONDS)

    asyncio.run(run())


def test_devices_join_and_leave(around):
    async def run():
        async with around() as fleet:
            link = fleet.device("edge0")
            await fleet.hears(("edge0", "joined"))
            late = fleet.coordinator.presence()
            assert (await anext(late)).event == "joined"  # devices that are there come first
            await link.close()
            await fleet.hears(("edge0", "left"))
            assert (await anext(late)).event == "left"
            fleet.device("edge0")
            await fleet.hears(("edge0", "joined"))
            await fleet.coordinator.request("edge0", Message("task"), SECONDS)

    asyncio.run(run())


@pytest.mark.slow
def test_no_answer_in_time_and_one_that_is_late(around):
    async def run():
        async with around() as fleet:
            slow = asyncio.Event()
            handled = []

            async def answer(message):
                handled.append(message.header["n"])
                if message.header["n"] == 1:
                    await slow.wait()
                return await echo(message)

            fleet.device("edge0", answer)
            await fleet.hears(("edge0", "joined"))
            with pytest.raises(NoAnswer, match=r"edge0.*0.2 s"):
                await fleet.coordinator.request("edge0", Message("task", {"n": 1}), 0.2)
            with pytest.raises(NoAnswer):  # waits behind the first, and is given up before it begins
                await fleet.coordinator.request("edge0", Message("task", {"n": 2}), 0.2)
            third = asyncio.create_task(fleet.coordinator.request("edge0", Message("task", {"n": 3}), SECONDS))
            await asyncio.sleep(0.05)
            slow.set()
            assert (await third).header == {"n": 3}
            assert handled == [1, 3]
            assert fleet.coordinator.traffic("edge0")[1].messages["late"] == 1

    asyncio.run(run())


@pytest.mark.slow
def test_many_requests_that_were_given_up_leave_nothing_behind(around):
    async def run():
        async with around() as fleet:
            slow = asyncio.Event()
            handled = []

            async def answer(message):
                handled.append(message.header["n"])
                await slow.wait()
                return await echo(message)

            fleet.device("edge0", answer)
            fleet.device("edge1")
            await fleet.hears(("edge0", "joined"), ("edge1", "joined"))
            asked = [fleet.coordinator.request("edge0", Message("task", {"n": number}), 0.5) for number in range(100)]
            given_up = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(error) for error in given_up} == {NoAnswer}
            await fleet.coordinator.request("edge1", Message("task"), SECONDS)  # all that was sent before is out
            slow.set()
            assert (await fleet.coordinator.request("edge0", Message("task", {"n": 100}), SECONDS)).header == {"n": 100}
            assert handled == [0, 100]

    asyncio.run(run())


def test_a_device_that_leaves_before_it_answers(around):
    async def run():
        async with around() as fleet:
            never = asyncio.Event()

            async def answer(message):
                await never.wait()

            link = fleet.device("edge0", answer)
            await fleet.hears(("edge0", "joined"))
            asked = asyncio.create_task(fleet.coordinator.request("edge0", Message("task"), 60))
            await asyncio.sleep(0.05)
            await link.close()
            with pytest.raises(DeviceGone, match="went away"):
                await asyncio.wait_for(asked, SECONDS)

    asyncio.run(run())


def test_an_answer_still_leaves_when_the_device_does(around):
    async def run():
        async with around() as fleet:
            worked = asyncio.Event()

            async def answer(message):
                worked.set()
                return Message(
                    "answer", message.header, {"x": torch.ones(2**20)}
                )  # its last chunks are still to be sent

            link = fleet.device("edge0", None)
            serving = asyncio.create_task(link.serve(answer))
            await fleet.hears(("edge0", "joined"))
            asked = asyncio.create_task(fleet.coordinator.request("edge0", Message("task", {"n": 1}), SECONDS))
            await worked.wait()
            serving.cancel()
            await link.close()
            assert (await asked).header == {"n": 1}

    asyncio.run(run())


def test_an_answer_that_is_no_message(around):
    class Noise(Message):
        def pack(self):
            return b"noise"

    async def run():
        async with around() as fleet:

            async def answer(message):
                return Noise("answer") if message.header["n"] == 1 else await echo(message)

            fleet.device("edge0", answer)
            await fleet.hears(("edge0", "joined"))
            with pytest.raises(MessageError):
                await fleet.coordinator.request("edge0", Message("task", {"n": 1}), SECONDS)
            assert (await fleet.coordinator.request("edge0", Message("task", {"n": 2}), SECONDS)).header == {"n": 2}
            assert fleet.coordinator.traffic("edge0")[1].bytes["refused"] == 5

    asyncio.run(run())


def test_traffic_by_device_kind_and_direction(around):
    async def run():
        async with around() as fleet:
            fleet.device("edge0")
            fleet.device("edge1")
            await fleet.hears(("edge0", "joined"), ("edge1", "joined"))
            task = Message("task", {}, {"x": torch.zeros(1000)})
            other = Message("probe", {"n": 1})
            for _ in range(3):
                await fleet.coordinator.request("edge0", task, SECONDS)
            await fleet.coordinator.request("edge0", other, SECONDS)
            sent, received = fleet.coordinator.traffic("edge0")
            assert sent.bytes == {"task": 3 * len(task.pack()), "probe": len(other.pack())}
            assert sent.messages == {"task": 3, "probe": 1}
            answers = 3 * len(Message("answer", {}, task.tensors).pack()) + len(Message("answer", {"n": 1}).pack())
            assert received.bytes["answer"] == answers
            assert received.messages["answer"] == 4
            assert not fleet.coordinator.traffic("edge1")[0].bytes

    asyncio.run(run())


def test_kinds_that_a_device_invents_are_counted_together(around):
    async def run():
        async with around() as fleet:

            async def answer(message):
                return Message(f"kind {message.header['n']}")

            fleet.device("edge0", answer)
            await fleet.hears(("edge0", "joined"))
            for number in range(50):
                await fleet.coordinator.request("edge0", Message("task", {"n": number}), SECONDS)
            assert len(fleet.coordinator.traffic("edge0")[1].bytes) < 40
            assert fleet.coordinator.traffic("edge0")[1].messages["other"] > 10

    asyncio.run(run())


def test_work_in_a_thread_leaves_the_link_alive(around):
    async def run():
        async with around() as fleet:

            async def answer(message):
                await asyncio.to_thread(time.sleep, 0.3)
                return await echo(message)

            fleet.device("edge0", answer)
            await fleet.hears(("edge0", "joined"))
            asked = asyncio.create_task(fleet.coordinator.request("edge0", Message("task"), SECONDS))
            ticks = 0
            while not asked.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert ticks > 10
            await asked

    asyncio.run(run())
