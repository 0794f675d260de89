"""The devices of a run: which are present, which version each has, and which get tasks.

A device that joins, or that did not answer in time, is asked for its :class:`DeviceInfo` until it answers. A device
answers one message after another, so the answer also proves that no older message waits there. Then the run's support
is installed on it, in the background of the rounds, and from then on it gets tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.event_log import EventLog
from taskedge.cooperation.protocol.bounds import short_reason
from taskedge.cooperation.protocol.device_info import DeviceInfo, read_device_info
from taskedge.cooperation.protocol.message import HEADER_ONLY, Message, MessageError
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer

HELLO_SECONDS = 10.0
"""Seconds that a device has to answer ``hello``."""
RETRY_SECONDS = 0.2
"""Seconds between two attempts to reach a device that does not answer."""
MAX_UNANSWERED = 6
"""Tasks in a row that a device may be late for. Its deadline has grown 64-fold by then."""


@dataclass
class DeviceSession:
    """A device that was seen in this run."""

    name: str
    present: bool = True
    session_id: int = 0
    """Number of times that it joined. A result from an earlier session may no longer hold."""
    info: DeviceInfo | None = None
    """None until it has answered ``hello``, and again after it did not answer a task."""
    version: int | None = None
    """Version of this run's values that it is known to have."""
    ready: bool = False
    """Whether it gets tasks."""
    unfit_reason: str = ""
    """Why it never gets a task in this session."""
    num_refused: int = 0
    """Refused answers in this run."""
    num_unanswered: int = 0
    """Tasks in a row that it was late for, or not ready for."""


class DeviceSessions:
    """Follows which devices are present, and makes them ready for tasks.

    Args:
        link: The coordinator's end.
        run_id: Id of the run.
        unfit_reason: Returns why a device cannot take part, by its name and info, or an empty string.
        config: The run's settings.
        log: Receives the events.

    Attributes:
        by_name: All devices that were seen.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        run_id: str,
        unfit_reason: Callable[[str, DeviceInfo], str],
        config: CooperationConfig,
        log: EventLog,
    ) -> None:
        self._link, self._run_id, self._config, self._log = link, run_id, config, log.write
        self._unfit_reason = unfit_reason
        self._install_message: Message | None = None
        self._on_installed: Callable[[str], None] = lambda _: None
        self.by_name: dict[str, DeviceSession] = {}
        self._changed = asyncio.Event()
        self._refused_before: dict[str, int] = {}
        """Refused answers before a resumption, by device."""
        self._handshakes: dict[str, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to follow which devices are present."""
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Cancel everything that runs in the background."""
        tasks = [task for task in (self._watcher, *self._handshakes.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def present(self) -> list[DeviceSession]:
        """Return the devices that have answered ``hello`` and are neither unfit nor in quarantine, by name."""
        sessions = [session for _, session in sorted(self.by_name.items())]
        return [s for s in sessions if s.present and s.info is not None and not self._is_excluded(s)]

    def ready(self) -> list[DeviceSession]:
        """Return the devices that get tasks, by name."""
        return [session for session in self.present() if session.ready]

    def quarantined(self) -> set[str]:
        """Return the devices that get no more tasks because of refused answers."""
        most = self._config.quarantine_after
        return {name for name, session in self.by_name.items() if session.num_refused >= most}

    def install_on_all(self, message: Message, on_installed: Callable[[str], None]) -> None:
        """Install the support with ``message`` on all devices, and on those that join later.

        ``on_installed`` is called with the name of each device after it installed the support.
        """
        self._install_message, self._on_installed = message, on_installed
        for session in self.present():
            self._start_handshake(session)

    def mark_unresponsive(self, session: DeviceSession) -> None:
        """Give a device no tasks until it answers ``hello``."""
        session.ready, session.info = False, None
        self._changed.set()
        if session.present:
            self._start_handshake(session)

    def record_refusal(self, session: DeviceSession, reason: str) -> None:
        """Count a refused answer. After ``quarantine_after`` of them a device gets no more tasks in this run."""
        session.num_refused += 1
        if session.num_refused == self._config.quarantine_after:
            session.ready = False
            self._changed.set()
            self._log("quarantined", device=session.name, refused=session.num_refused, why=reason)

    def record_unanswered(self, session: DeviceSession, result: str) -> None:
        """Count a task that was not answered in time, or by ``unready``.

        A device may be slow, and its deadline grows each time. One that answers none of many tasks in a row holds up
        every round, so from then on each counts as a refused answer.
        """
        session.num_unanswered += 1
        if session.num_unanswered > MAX_UNANSWERED:
            self.record_refusal(session, f"{result} for {session.num_unanswered} tasks in a row")

    def state_dict(self) -> dict[str, Any]:
        """Return the refused answers by device, JSON-able."""
        counts = {name: session.num_refused for name, session in self.by_name.items() if session.num_refused}
        return {"refused": self._refused_before | counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._refused_before = {str(name): int(count) for name, count in state["refused"].items()}
        for name, session in self.by_name.items():
            session.num_refused += self._refused_before.get(name, 0)

    async def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``condition()`` is true, and return whether it is within ``seconds``.

        The condition is evaluated after each change of a device, and at least once per second.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not condition():
            if self._watcher is not None and self._watcher.done():
                self._watcher.result()  # raises the error that ended it
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, max(0.0, end - loop.time())))
            if loop.time() >= end:
                return condition()
        return True

    def _is_excluded(self, session: DeviceSession) -> bool:
        return bool(session.unfit_reason) or session.num_refused >= self._config.quarantine_after

    async def _watch(self) -> None:
        async for presence in self._link.presence():
            session = self.by_name.get(presence.device)
            if session is None:
                session = DeviceSession(presence.device, num_refused=self._refused_before.get(presence.device, 0))
                self.by_name[presence.device] = session
            if presence.event == "flooded":
                self._log("flooded", device=presence.device, why=presence.why)
                self.record_refusal(session, presence.why)
                continue
            self._log(presence.event, device=presence.device)
            session.present = presence.event == "joined"
            session.ready, session.info, session.unfit_reason = False, None, ""
            if session.present:
                session.session_id += 1
            self._changed.set()
            if session.present:
                self._start_handshake(session)

    def _start_handshake(self, session: DeviceSession) -> None:
        running = self._handshakes.get(session.name)
        if running is not None:
            running.cancel()
        self._handshakes[session.name] = asyncio.create_task(self._handshake(session))

    async def _handshake(self, session: DeviceSession) -> None:
        """Ask for the device's info and install the support if it is missing, until the device answers or leaves."""
        while True:
            with suppress(NoAnswer):
                await self._make_ready(session)
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _make_ready(self, session: DeviceSession) -> None:
        """Make one attempt to get a device ready.

        Raises:
            NoAnswer: It did not answer in time.
        """
        hello = Message("hello", {"run": self._run_id})
        try:
            answer = await self._link.request(session.name, hello, HELLO_SECONDS, HEADER_ONLY)
            info = read_device_info(answer)
            session.unfit_reason = self._unfit_reason(session.name, info)
            session.info = info
            if session.unfit_reason:
                self._log("unfit", device=session.name, why=session.unfit_reason)
                return
            self._changed.set()
            if self._install_message is None:
                return
            digest = self._install_message.header.get("digest", "")
            same_support = info.support in ("", digest)  # earlier revisions state none
            session.version = info.version if info.run == self._run_id and same_support else None
            if session.version is None:
                await self._install(session, self._install_message)
        except DeviceGone:
            return  # presence reports it as well
        except (MessageError, _NotInstalled) as error:
            session.unfit_reason = str(error)
            self._log("unfit", device=session.name, why=session.unfit_reason)
            return
        session.ready = not self._is_excluded(session)
        if session.ready:
            self._log("ready", device=session.name, holds=session.version)
        self._changed.set()

    async def _install(self, session: DeviceSession, message: Message) -> None:
        answer = await self._link.request(session.name, message, self._config.first_deadline, HEADER_ONLY)
        if answer.kind != "installed":
            raise _NotInstalled(f"the support cannot be installed there: {short_reason(answer.header.get('why'))}")
        session.version = 0
        self._on_installed(session.name)


class _NotInstalled(Exception):
    """The device answered, but it did not install the support."""
