"""A device made as slow as the plan takes it for, so that a run on one machine shows the latencies of a fleet (ours).

What is slow: the task's way down and the answer's way up, at the bit rates of the fleet file and of the planned share,
for the bytes that really cross the link; and training, which ends no sooner than the fleet file (or the profile) says
for the device's blocks and tokens. What is not: hello, statistics, installation, and the coordinator's own work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceLink

STATED = ("compute_seconds", "downlink_bits_per_second", "uplink_bits_per_second")
"""What every task says of the device's part: as planned, before any correction by what was observed."""


class EmulatedLink:
    """Stands between a device and its link.

    The answer's ``seconds`` are those of the emulated device; what training really took is added as ``real_seconds``.

    Args:
        link: the real end.
        say: told where a real step is slower than the emulated one, which cannot be helped.
    """

    def __init__(self, link: DeviceLink, say: Callable[[str], None] = lambda _: None) -> None:
        self._link, self._say = link, say

    async def serve(self, answer: Callable[[Message], Awaitable[Message]]) -> None:
        """See ``DeviceLink.serve``."""

        async def slowly(message: Message) -> Message:
            if message.kind != "task" or not set(STATED) <= message.facts.keys():
                return await answer(message)
            return await self._slowly(message, answer)

        await self._link.serve(slowly)

    async def say(self, message: Message) -> None:
        """See ``DeviceLink.say``."""
        await self._link.say(message)

    async def close(self) -> None:
        """See ``DeviceLink.close``."""
        await self._link.close()

    async def _slowly(self, task: Message, answer: Callable[[Message], Awaitable[Message]]) -> Message:
        compute, down, up = (float(task.facts[name]) for name in STATED)
        await asyncio.sleep(_seconds(task, down))
        started = time.monotonic()
        answered = await answer(task)
        if "seconds" in answered.facts:  # it trained
            await asyncio.sleep(started + compute - time.monotonic())
            answered = self._as_emulated(answered, time.monotonic() - started, compute)
        await asyncio.sleep(_seconds(answered, up))
        return answered

    def _as_emulated(self, answered: Message, seconds: float, stated: float) -> Message:
        real = float(answered.facts["seconds"])
        if real > stated:
            self._say(f"the real step took {real:.2f} s, longer than the {stated:.2f} s to emulate: give it less to do")
        facts: dict[str, Any] = {**answered.facts, "seconds": seconds, "real_seconds": real}
        return Message(answered.kind, facts, answered.tensors)


def _seconds(message: Message, bits_per_second: float) -> float:
    return 8 * len(message.pack()) / bits_per_second
