"""Emulate the speed that the plan assumes of a device, so that one machine shows the latencies of a fleet.

Slowed down are the task's way down and the answer's way up, at the bit rates of the fleet file and of the planned
bandwidth, for the bytes that really cross the link; and training, which takes at least the seconds that the fleet file
(or the profile) gives for the device's blocks and tokens. Not slowed down are hello, statistics, installation, and the
coordinator's own work. Source: this project.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.links import DeviceLink, Handler

NOMINAL_FIELDS = ("compute_seconds", "downlink_bits_per_second", "uplink_bits_per_second")
"""Fields of every task message: the planned costs of the device, without any correction by observed seconds."""


class EmulatedLink:
    """A wrapper of a device's link.

    The answer's ``seconds`` are those of the emulated device. Those of the real one are added as ``real_seconds``.

    Args:
        link: The real link.
        log: Called with a line if the real step is slower than the emulated one.
    """

    def __init__(self, link: DeviceLink, log: Callable[[str], None] = lambda _: None) -> None:
        self._link, self._log = link, log

    async def serve(self, handler: Handler) -> None:
        """See ``DeviceLink.serve``."""

        async def slowed_down(message: Message) -> Message:
            if message.kind != "task" or not set(NOMINAL_FIELDS) <= message.header.keys():
                return await handler(message)
            return await self._slow_down(message, handler)

        await self._link.serve(slowed_down)

    async def close(self) -> None:
        """See ``DeviceLink.close``."""
        await self._link.close()

    async def _slow_down(self, task: Message, handler: Handler) -> Message:
        compute_seconds, downlink, uplink = (float(task.header[name]) for name in NOMINAL_FIELDS)
        await asyncio.sleep(_transfer_seconds(task, downlink))
        started = time.monotonic()
        answer = await handler(task)
        if "seconds" in answer.header:  # it trained
            await asyncio.sleep(started + compute_seconds - time.monotonic())
            answer = self._with_emulated_seconds(answer, time.monotonic() - started, compute_seconds)
        await asyncio.sleep(_transfer_seconds(answer, uplink))
        return answer

    def _with_emulated_seconds(self, answer: Message, seconds: float, nominal: float) -> Message:
        real = float(answer.header["seconds"])
        if real > nominal:
            self._log(
                f"the real step took {real:.2f} s, longer than the {nominal:.2f} s to emulate: give it less to do"
            )
        return Message(answer.kind, {**answer.header, "seconds": seconds, "real_seconds": real}, answer.tensors)


def _transfer_seconds(message: Message, bits_per_second: float) -> float:
    return 8 * len(message.pack()) / bits_per_second
