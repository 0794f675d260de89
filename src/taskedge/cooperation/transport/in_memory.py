"""Links within one process: for tests, and for many simulated devices that share a model. Not for real fleets.

Messages are packed and unpacked here, too, so that a message that cannot be sent fails the same way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceGone, Handler
from taskedge.cooperation.transport.request_reply import RequestReplyLink


@dataclass(eq=False)
class MemoryCoordinatorLink(RequestReplyLink):
    """The coordinator's end. :meth:`device` makes the devices' ends."""

    _devices: dict[str, MemoryDeviceLink] = field(default_factory=dict)

    def device(self, name: str) -> MemoryDeviceLink:
        """Return the link of a device that joins now. An earlier device of the same name leaves."""
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
        self._devices[device]._requests.put_nowait((token, packed))

    async def _forget(self, device: str, token: str) -> None:
        if device in self._devices:
            self._devices[device]._forgotten.add(token)


class MemoryDeviceLink:
    """A device's end."""

    def __init__(self, name: str, coordinator: MemoryCoordinatorLink) -> None:
        self.name = name
        self._coordinator = coordinator
        self._requests: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._forgotten: set[str] = set()
        self._is_here = True

    async def serve(self, handler: Handler) -> None:
        """See ``DeviceLink.serve``."""
        while True:
            token, packed = await self._requests.get()
            if token in self._forgotten:
                self._forgotten.remove(token)
                continue
            answer = (await handler(Message.unpack(packed))).pack()
            self._forgotten.discard(token)
            if self._is_here:
                self._coordinator._answered(self.name, token, answer)

    async def close(self) -> None:
        """See ``DeviceLink.close``."""
        self._leave()

    def _leave(self) -> None:
        if self._is_here:
            self._is_here = False
            del self._coordinator._devices[self.name]
            self._coordinator._left(self.name)
