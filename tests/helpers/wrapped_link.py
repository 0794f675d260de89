"""A cloud's or coordinator's end of a link around another, for what may happen on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.transport.links import CoordinatorLink, Presence, Traffic

NO_LIMITS = MessageLimits()


@dataclass
class WrappedLink:
    """Hands everything on to ``link``; derive from it to change requests. See ``CoordinatorLink``."""

    link: CoordinatorLink

    @property
    def trouble(self) -> str | None:
        return self.link.trouble

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        return await self.link.request(device, message, seconds, limits)

    def presence(self) -> AsyncIterator[Presence]:
        return self.link.presence()

    def traffic(self, device: str) -> tuple[Traffic, Traffic]:
        return self.link.traffic(device)

    async def close(self) -> None:
        await self.link.close()
