"""Requests, presence and traffic of a coordinator's link, whatever carries the bytes."""

import asyncio

import pytest
import torch

from taskedge.cooperation.protocol.message import Message, MessageError, MessageLimits
from taskedge.cooperation.transport.links import DeviceGone, NoAnswer
from taskedge.cooperation.transport.request_reply import LATE, REFUSED, RequestReplyLink


class Recorded(RequestReplyLink):
    """A transport that records requests; the test plays the devices."""

    def __init__(self):
        super().__init__()
        self.sent, self.forgotten = [], []

    async def _send(self, device, token, packed):
        self.sent.append((device, token, packed))

    async def _forget(self, device, token):
        self.forgotten.append(token)

    def join(self, device):
        self._joined(device)

    def leave(self, device):
        self._left(device)

    def answer(self, device, token, packed):
        self._answered(device, token, packed)


ANSWER = Message("answer", {"n": 1}).pack()


async def sent(link, count=1):
    while len(link.sent) < count:
        await asyncio.sleep(0)
    return link.sent[-1]


def test_an_answer_reaches_its_request():
    async def run():
        link = Recorded()
        link.join("a")
        waiting = asyncio.create_task(link.request("a", Message("task"), 10))
        device, token, packed = await sent(link)
        assert (device, Message.unpack(packed).kind) == ("a", "task")
        link.answer("b", token, ANSWER)  # another device
        link.answer("a", "another token", ANSWER)
        link.answer("a", token, ANSWER)
        assert (await waiting).header == {"n": 1}
        link.answer("a", token, ANSWER)  # a second answer
        assert link.traffic("a")[1].messages == {LATE: 2, "answer": 1}
        assert link.traffic("b")[1].messages == {LATE: 1}
        assert link.forgotten == []

    asyncio.run(run())


def test_a_request_that_is_given_up_is_forgotten():
    async def run():
        link = Recorded()
        link.join("a")
        with pytest.raises(NoAnswer, match=r"'a' did not answer a 'task' message within 0\.01 s"):
            await link.request("a", Message("task"), 0.01)
        canceled = asyncio.create_task(link.request("a", Message("task"), 10))
        await sent(link, 2)
        canceled.cancel()
        await asyncio.gather(canceled, return_exceptions=True)
        gone = asyncio.create_task(link.request("a", Message("task"), 10))
        await sent(link, 3)
        link.leave("a")
        with pytest.raises(DeviceGone, match="went away"):
            await gone
        assert link.forgotten == [token for _, token, _ in link.sent]
        with pytest.raises(DeviceGone, match="not connected"):
            await link.request("a", Message("task"), 10)

    asyncio.run(run())


def test_bytes_that_are_no_message_fail_the_request():
    async def run():
        link = Recorded()
        link.join("a")
        waiting = asyncio.create_task(link.request("a", Message("task"), 10))
        _, token, _ = await sent(link)
        link.answer("a", token, b"noise")
        with pytest.raises(MessageError):
            await waiting
        assert link.traffic("a")[1].messages == {REFUSED: 1}

    asyncio.run(run())


def test_presence_begins_with_the_devices_that_are_there():
    async def run():
        link = Recorded()
        link.join("b")
        link.join("a")
        link.join("a")
        presence = link.presence()
        link.leave("b")
        link.leave("b")
        seen = [await anext(presence) for _ in range(3)]
        assert [(one.device, one.event) for one in seen] == [("a", "joined"), ("b", "joined"), ("b", "left")]

    asyncio.run(run())


def test_an_answer_beyond_what_was_expected_is_refused():
    large = Message("answer", {}, {f"t{n}": torch.zeros(4) for n in range(5)}).pack()
    for limits, why in (
        (MessageLimits(max_bytes=100), "oversize"),
        (MessageLimits(max_tensors=4), "of 5 tensors, where at most 4"),
    ):

        async def run(limits=limits, why=why):
            link = Recorded()
            link.join("a")
            waiting = asyncio.create_task(link.request("a", Message("task"), 10, limits))
            _, token, _ = await sent(link)
            link.answer("a", token, large)
            with pytest.raises(MessageError, match=why):
                await waiting

        asyncio.run(run())


def test_a_device_that_comes_and_goes_does_not_fill_the_queue():
    async def run():
        link = Recorded()
        presence = link.presence()
        for _ in range(1000):
            link.join("a")
            link.leave("a")
        link.join("a")
        link.join("b")
        seen = [await anext(presence) for _ in range(4)]
        assert [(one.device, one.event) for one in seen] == [
            ("a", "joined"),
            ("a", "left"),
            ("a", "joined"),
            ("b", "joined"),
        ]

    asyncio.run(run())


def test_traffic_counts_packed_bytes_by_kind():
    async def run():
        link = Recorded()
        link.join("a")
        task = Message("task", {"n": 1})
        waiting = asyncio.create_task(link.request("a", task, 10))
        _, token, _ = await sent(link)
        link.answer("a", token, ANSWER)
        await waiting
        down, up = link.traffic("a")
        assert (down.bytes, down.messages) == ({"task": len(task.pack())}, {"task": 1})
        assert (up.bytes, up.messages) == ({"answer": len(ANSWER)}, {"answer": 1})

    asyncio.run(run())


def test_kinds_that_a_device_invents_are_counted_together():
    async def run():
        link = Recorded()
        link.join("a")
        for count, kind in enumerate([*(f"kind {number}" for number in range(50)), "k" * 100], start=1):
            waiting = asyncio.create_task(link.request("a", Message("task"), 10))
            _, token, _ = await sent(link, count)
            link.answer("a", token, Message(kind).pack())
            await waiting
        messages = link.traffic("a")[1].messages
        assert len(messages) == 33
        assert messages["other"] == 51 - 32

    asyncio.run(run())
