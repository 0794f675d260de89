"""Links within one process: for tests, and for many simulated devices that share a model. Not an engine for real use.

Messages go through their bytes here, too, so that what cannot be sent fails the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceGone
from taskedge.cooperation.transport.request_reply import Switchboard


@dataclass(eq=False)
class MemoryCoordinatorLink(Switchboard):
    """The coordinator's end; ``device`` makes the others."""

    _devices: dict[str, MemoryDeviceLink] = field(default_factory=dict)

    def device(self, name: str) -> MemoryDeviceLink:
        """A device that is there from now on; one of the same name that was there before is gone."""
        if name in self._devices:
            self._devices[name]._leave()
        link = self._devices[name] = MemoryDeviceLink(name, self)
        self._joined(name)
        return link

    async def close(self) -> None:
        """See ``CoordinatorLink.close``."""

    async def _send(self, device: str, token: str, packed: bytes) -> None:
        if device not in self._devices:
            raise DeviceGone(f"{device!r} is not connected")
        self._devices[device]._tasks.put_nowait((token, packed))

    async def _forget(self, device: str, token: str) -> None:
        if device in self._devices:
            self._devices[device]._forgotten.add(token)


class MemoryDeviceLink:
    """A device's end."""

    def __init__(self, name: str, coordinator: MemoryCoordinatorLink) -> None:
        self.name = name
        self._coordinator = coordinator
        self._tasks: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._forgotten: set[str] = set()
        self._here = True

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        """See ``DeviceLink.serve``."""
        while True:
            token, packed = await self._tasks.get()
            if token in self._forgotten:
                self._forgotten.remove(token)
                continue
            answered = (await answer(Message.unpack(packed))).pack()
            self._forgotten.discard(token)
            if self._here:
                self._coordinator._answered(self.name, token, answered)

    async def say(self, message: Message) -> None:
        """See ``DeviceLink.say``."""
        packed = message.pack()
        if self._here:
            self._coordinator._said(self.name, packed)

    async def close(self) -> None:
        """See ``DeviceLink.close``."""
        self._leave()

    def _leave(self) -> None:
        if self._here:
            self._here = False
            del self._coordinator._devices[self.name]
            self._coordinator._left(self.name)
