"""Fleets to test with: one coordinator and devices, in this process, over each transport."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceLink, Presence
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import NatsServer

Answer = Callable[[Message], Awaitable[Message]]
SECONDS = 10.0
"""Longer than any act here, on a busy machine."""


async def echo(message: Message) -> Message:
    return Message("answer", message.header, message.tensors)


class Around:
    """A coordinator, its devices, and the events that it hears of them."""

    def __init__(self, coordinator: CoordinatorLink, device: Callable[[str], DeviceLink], listen: bool) -> None:
        self.coordinator = coordinator
        self._device = device
        self._tasks: list[asyncio.Task[Any]] = []
        self._links: list[DeviceLink] = []
        self._presence = coordinator.presence() if listen else None

    def device(self, name: str, answer: Answer | None = echo) -> DeviceLink:
        link = self._device(name)
        self._links.append(link)
        if answer is not None:
            self._tasks.append(asyncio.create_task(link.serve(answer)))
        return link

    async def hears(self, *expected: tuple[str, str], seconds: float = SECONDS) -> list[Presence]:
        """Wait for the next events, in any order. Others are an error."""
        heard: list[Presence] = []
        assert self._presence is not None
        async with asyncio.timeout(seconds):
            for _ in expected:
                heard.append(await anext(self._presence))
        assert sorted((presence.device, presence.event) for presence in heard) == sorted(expected)
        return heard

    async def hears_nothing(self, seconds: float) -> None:
        with suppress(TimeoutError):
            assert self._presence is not None
            async with asyncio.timeout(seconds):
                raise AssertionError(await anext(self._presence))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links:
            await link.close()
        await self.coordinator.close()


@asynccontextmanager
async def in_memory(*, listen: bool = True) -> AsyncIterator[Around]:
    coordinator = MemoryCoordinatorLink()
    around = Around(coordinator, coordinator.device, listen)
    try:
        yield around
    finally:
        await around.close()


@asynccontextmanager
async def over_nats(fleet: DeviceRegistry, *, listen: bool = True) -> AsyncIterator[Around]:
    coordinator = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
    around = Around(coordinator, lambda name: NatsDeviceLink(fleet.folder / "devices" / name), listen)
    try:
        yield around
    finally:
        await around.close()


def started(folder: Path, *devices: str) -> tuple[DeviceRegistry, NatsServer]:
    """A fleet whose server runs on a free port of loopback."""
    from taskedge.cooperation.transport.nats.server import ServerError, free_port

    for attempt in range(3):
        fleet = DeviceRegistry.create(folder, port=free_port())
        for device in devices:
            fleet.enroll(device)
        try:
            return fleet, fleet.start_server()
        except ServerError as error:  # another process may have taken the port meanwhile
            if "address already in use" not in str(error) or attempt == 2:
                raise
            shutil.rmtree(folder)
    raise AssertionError
