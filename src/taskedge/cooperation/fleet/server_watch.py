"""Keep the server of a fleet running while a coordinator works with it.

The server is a process of its own, which devices find again when it is back. Somebody else may start it as well: a
service manager, or another command. So it is started here only after it was gone for a moment, and a lock makes sure
that it is started once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.errors import TaskEdgeError

WATCH_SECONDS = 0.5
"""Seconds between two looks at the server's process."""
GRACE_SECONDS = 1.0
"""How long the server may be gone before it is started: a service manager or its owner may be quicker."""
MAX_RETRY_SECONDS = 30.0
"""Longest time between two attempts to start it."""


async def keep_server_running(
    registry: DeviceRegistry,
    on_event: Callable[[Event], None],
    on_started: Callable[[int | None], None] = lambda _: None,
) -> None:
    """Watch the server's process until cancelled, and start it again when it has ended.

    Args:
        registry: The fleet's folder.
        on_event: Called with an event ``server`` that says what happened.
        on_started: Called with the process id of each server that was started here.
    """
    retry_seconds = WATCH_SECONDS
    gone_since: float | None = None
    while True:
        await asyncio.sleep(retry_seconds if gone_since is not None else WATCH_SECONDS)
        if await asyncio.to_thread(lambda: registry.server.pid) is not None:
            gone_since, retry_seconds = None, WATCH_SECONDS
            continue
        if gone_since is None:
            gone_since = time.monotonic()
            on_event({"event": "server", "why": "the message server has ended: no device can be reached"})
        if time.monotonic() - gone_since < GRACE_SECONDS:
            continue
        try:
            server = await asyncio.to_thread(registry.start_server)
        except (TaskEdgeError, OSError) as error:
            retry_seconds = min(MAX_RETRY_SECONDS, 2 * retry_seconds)
            on_event({"event": "server", "why": f"the message server could not be started again: {error}"})
        else:
            gone_since, retry_seconds = None, WATCH_SECONDS
            on_event({"event": "server", "why": f"the message server was started again (process {server.pid})"})
            on_started(server.pid)
