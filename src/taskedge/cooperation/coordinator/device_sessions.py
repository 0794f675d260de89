"""The devices of a run: who is there, what each holds, and which of them get tasks.

A device that comes, or that did not answer in time, is asked who it is until it answers: since it answers one message
after another, an answer also proves that nothing old waits there. Then the run's support is installed on it, beside the
rounds, and from then on it gets tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.event_log import RunLog
from taskedge.cooperation.device.device import PROTOCOL
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer
from taskedge.profiling.profile_file import Profile

HELLO_SECONDS = 10.0


@dataclass(frozen=True)
class About:
    """What a device says of itself."""

    base: str
    labels: tuple[str, ...]
    rows: int
    memory_bytes: float
    profile: Profile | None
    run: str
    version: int | None


@dataclass
class Member:
    """A device that was seen in this run."""

    name: str
    present: bool = True
    visit: int = 0
    """Counts how often it came: what was found out in an earlier visit may not hold any more."""
    about: About | None = None
    """None until it has said who it is, and again while it is unsure whether it hears."""
    holds: int | None = None
    """The version of this run that it is known to hold."""
    ready: bool = False
    """Whether it gets tasks."""
    unfit: str = ""
    """Why it never gets one."""
    refused: int = 0


class Members:
    """Follows presence and brings devices to where they can get tasks.

    Args:
        link: the coordinator's end.
        run: the run's id.
        fit: says why a device cannot take part, or an empty string.
    """

    def __init__(
        self, link: CoordinatorLink, run: str, fit: Callable[[About], str], settings: CooperateSettings, log: RunLog
    ) -> None:
        self._link, self._run, self._fit, self._settings, self._log = link, run, fit, settings, log.write
        self._install_message: Message | None = None
        self._on_installed: Callable[[str], None] = lambda _: None
        self.known: dict[str, Member] = {}
        self._changed = asyncio.Event()
        self._refused_before: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to follow who is there."""
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends all that runs beside the rounds."""
        tasks = [task for task in (self._watcher, *self._tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def present(self) -> list[Member]:
        """Those that have said who they are, are fit and not in quarantine, by name."""
        return [m for _, m in sorted(self.known.items()) if m.present and m.about is not None and not self._barred(m)]

    def ready(self) -> list[Member]:
        """Those that get tasks, by name."""
        return [member for member in self.present() if member.ready]

    def prepare(self, message: Message, on_installed: Callable[[str], None]) -> None:
        """There is a support now: installs it with ``message`` on everyone, and on all who come later."""
        self._install_message, self._on_installed = message, on_installed
        for member in self.present():
            self._greet(member)

    def unsure(self, member: Member) -> None:
        """The device did not answer: no tasks until it says who it is."""
        member.ready, member.about = False, None
        self._changed.set()
        if member.present:
            self._greet(member)

    def refuse(self, member: Member, why: str) -> None:
        """Counts a refused answer; too many, and the device is in quarantine for the rest of the run."""
        member.refused += 1
        if self._barred(member):
            member.ready = False
            self._changed.set()
            self._log("quarantined", device=member.name, refused=member.refused, why=why)

    def state(self) -> dict[str, Any]:
        """JSON-able: refused answers by device."""
        counts = {name: m.refused for name, m in self.known.items() if m.refused}
        return {"refused": self._refused_before | counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state` gave."""
        self._refused_before = {str(name): int(count) for name, count in state["refused"].items()}
        for name, member in self.known.items():
            member.refused += self._refused_before.get(name, 0)

    async def wait(self, enough: Callable[[], bool], seconds: float) -> bool:
        """Waits until ``enough()``, which is asked whenever something changed; whether it came in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not enough():
            if self._watcher is not None and self._watcher.done():
                self._watcher.result()  # raises what ended it
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(1.0, max(0.0, end - loop.time())))
            if loop.time() >= end:
                return enough()
        return True

    def _barred(self, member: Member) -> bool:
        return bool(member.unfit) or member.refused >= self._settings.quarantine_after

    async def _watch(self) -> None:
        async for seen in self._link.presence():
            if seen.what == "said":
                continue
            member = self.known.get(seen.device)
            if member is None:
                member = Member(seen.device, refused=self._refused_before.get(seen.device, 0))
                self.known[seen.device] = member
            self._log(seen.what, device=seen.device)
            member.visit += seen.what == "joined"
            member.present, member.ready, member.about, member.unfit = seen.what == "joined", False, None, ""
            self._changed.set()
            if member.present:
                self._greet(member)

    def _greet(self, member: Member) -> None:
        before = self._tasks.get(member.name)
        if before is not None:
            before.cancel()
        self._tasks[member.name] = asyncio.create_task(self._bring(member))

    async def _bring(self, member: Member) -> None:
        """Hello, and the installation where one is due, until the device answers both or leaves."""
        while True:
            with suppress(NoAnswer):
                if await self._hello(member):
                    return
            await asyncio.sleep(0.2)

    async def _hello(self, member: Member) -> bool:
        """Whether nothing is left to do with the device."""
        try:
            about = read_about(await self._link.ask(member.name, Message("hello", {"run": self._run}), HELLO_SECONDS))
            member.unfit = self._fit(about)
            member.about = about
            if member.unfit:
                self._log("unfit", device=member.name, why=member.unfit)
                return True
            self._changed.set()
            if self._install_message is None:
                return True
            member.holds = about.version if about.run == self._run else None
            if member.holds is None:
                await self._install(member)
        except DeviceGone:
            return True  # presence says so as well
        except (MessageError, _NotInstalled) as error:
            member.unfit = str(error)
            self._log("unfit", device=member.name, why=member.unfit)
            return True
        member.ready = not self._barred(member)
        if member.ready:
            self._log("ready", device=member.name, holds=member.holds)
        self._changed.set()
        return True

    async def _install(self, member: Member) -> None:
        assert self._install_message is not None
        answer = await self._link.ask(member.name, self._install_message, self._settings.first_deadline)
        if answer.kind != "installed":
            raise _NotInstalled(f"the support cannot be installed there: {str(answer.facts.get('why'))[:300]}")
        member.holds = 0
        self._on_installed(member.name)


class _NotInstalled(Exception):
    """The device answered, but not that it installed."""


def read_about(answer: Message) -> About:
    """What a device says of itself.

    Raises:
        MessageError: it is no sound hello.
    """
    facts = answer.facts
    if answer.kind != "hello" or facts.get("protocol") != PROTOCOL:
        raise MessageError(f"it speaks protocol {facts.get('protocol')!r}, not {PROTOCOL}: install the same taskedge")
    try:
        profile = facts["profile"]
        version = facts["version"]
        return About(
            base=str(facts["base"]),
            labels=tuple(map(str, facts["labels"])),
            rows=int(facts["rows"]),
            memory_bytes=max(1.0, float(facts["memory_bytes"])),
            profile=None if profile is None else Profile.model_validate(profile),
            run=str(facts["run"]),
            version=None if version is None else int(version),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
        raise MessageError(f"it does not say who it is ({type(error).__name__}: {error})") from None
