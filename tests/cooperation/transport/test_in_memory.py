"""Links in memory pack messages as real ones do, and a name belongs to one device at a time."""

import asyncio

import pytest
import torch
from linked_fleets import SECONDS, echo

from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.links import DeviceGone


def test_messages_are_copied():
    async def run():
        coordinator = MemoryCoordinatorLink()
        serving = asyncio.create_task(coordinator.device("a").serve(echo))
        tensor = torch.ones(3)
        answer = await coordinator.request("a", Message("task", {}, {"x": tensor}), SECONDS)
        tensor.zero_()
        assert answer.tensors["x"].tolist() == [1.0] * 3
        serving.cancel()

    asyncio.run(run())


def test_a_message_that_cannot_be_packed_fails():
    async def run():
        coordinator = MemoryCoordinatorLink()
        coordinator.device("a")
        with pytest.raises(MessageError, match="no JSON"):
            await coordinator.request("a", Message("task", {"x": float("nan")}), SECONDS)

    asyncio.run(run())


def test_a_new_device_replaces_the_one_of_its_name():
    async def run():
        coordinator = MemoryCoordinatorLink()
        presence = coordinator.presence()
        first = coordinator.device("a")
        waiting = asyncio.create_task(coordinator.request("a", Message("task"), SECONDS))
        await asyncio.sleep(0)
        coordinator.device("a")
        with pytest.raises(DeviceGone, match="went away"):
            await waiting
        assert [(await anext(presence)).event for _ in range(3)] == ["joined", "left", "joined"]
        await first.close()
        assert coordinator.traffic("a")[1].bytes == {}

    asyncio.run(run())
