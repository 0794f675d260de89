"""The coordinator of a cooperative run: from devices that are there to a delta file, resumable at any moment.

coordinator = Coordinator(link, model, settings, Path("task.run"))
result = await coordinator.run()
coordinator.delta().save("task.safetensors")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import Member, Members
from taskedge.cooperation.coordinator.event_log import LOG, Event, RunLog
from taskedge.cooperation.coordinator.rounds import Rounds
from taskedge.cooperation.coordinator.run_folder import RunFolder
from taskedge.cooperation.coordinator.run_setup import Beginning
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import Statistics
from taskedge.cooperation.scheduling.freezing import ReviveSettings
from taskedge.cooperation.scheduling.round_planner import Planner
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.fleet_spec import Fleet
from taskedge.selection.support import Support

GOODBYE_SECONDS = 10.0


@dataclass(frozen=True)
class CooperateResult:
    """What a run made."""

    rounds: int
    version: int
    """How many rounds changed something."""
    loss: float | None
    """Of the last round with a usable answer in this process."""
    entries: int
    share: float
    head: int
    """Values that train whole, counted apart."""
    seconds: float
    bytes_down: dict[str, dict[str, int]]
    bytes_up: dict[str, dict[str, int]]
    """By device and kind of message, in this process."""


class Coordinator:
    """Runs one cooperative run.

    Args:
        link: the coordinator's end.
        model: the base with a head; this run installs a support on it, and leaves it with the last values.
        settings: how.
        folder: of the run: support, versions and log. ``run(resume=True)`` goes on from it.
        whole: parameters that train whole; None: the model's head.
        labels: the classes; devices with others take no part.
        fleet: what is known of devices and links; devices that it does not name are taken as they describe themselves.
        table: the model's block table, one row a layer; None: counted for token ids of 128 tokens.
        most_tokens: in a row, at most; None: the model's positions.
        revive: schedule of idle modules; None: the default one at the settings' ``active_share``.
        on_event: told of every line of the log as it is written.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        model: nn.Module,
        settings: CooperateSettings,
        folder: Path,
        *,
        whole: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        fleet: Fleet | None = None,
        table: BlockTable | None = None,
        most_tokens: int | None = None,
        revive: ReviveSettings | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._link, self._model, self._settings, self._path = link, model, settings, folder
        self._on_event = on_event
        self._beginning = Beginning(
            model,
            settings,
            whole=whole,
            labels=labels,
            fleet=fleet,
            table=table,
            most_tokens=most_tokens,
            revive=revive,
        )
        self.state: RunState | None = None
        """What the run is; None until the support is installed."""

    async def run(self, *, resume: bool = False) -> CooperateResult:
        """Runs all rounds, or with ``resume`` those after the last committed version.

        Raises:
            InputError: the folder, or what is in it; a disk that is full.
            InfeasiblePlan: no device can hold some block.
            TaskEdgeError: too few devices came, or none gave a usable answer for too long; see :class:`Rounds`.
        """
        started = time.monotonic()
        beginning = self._beginning
        folder = RunFolder(self._path, self._settings, beginning.digest, beginning.labels, resume=resume)
        log = RunLog(folder.path / LOG, self._on_event)
        members = Members(self._link, folder.run, beginning.unfit, self._settings, log)
        loss = None
        members.start()
        try:
            await self._wait_for(members, lambda: len(members.present()) >= self._settings.devices)
            if folder.support is None:
                folder.keep(await self._choose(members, log))
            assert folder.support is not None
            self.state, planner = beginning.begin(folder.support)
            state = self.state
            rounds = Rounds(self._link, members, state, planner, folder, log, beginning.most_tokens)
            if folder.resumed:
                rounds.load(*folder.resumed)
                log.write("resumed", round=state.round, version=state.version)
            else:
                await rounds.commit()  # devices are about to be told where the head begins
            members.prepare(beginning.install_message(folder.run, folder.support, state), planner.pace.cold)
            await self._wait_for(members, lambda: self._enough(members, planner))
            while state.round < self._settings.rounds:
                loss = await rounds.run_one() or loss
            await self._say_goodbye(members, folder.run, state)
            log.write("done", round=state.round, version=state.version)
        finally:
            await members.stop()
            if self.state is not None:
                self.state.write_into(self._model)
        seconds = time.monotonic() - started
        return CooperateResult(
            rounds=state.round,
            version=state.version,
            loss=loss,
            entries=folder.support.entries,
            share=folder.support.share,
            head=sum(value.numel() for value in state.head_start().values()),
            seconds=seconds,
            bytes_down={name: dict(self._link.traffic(name)[0].bytes) for name in sorted(members.known)},
            bytes_up={name: dict(self._link.traffic(name)[1].bytes) for name in sorted(members.known)},
        )

    def delta(self) -> Delta:
        """The support with the values as they are now, as a delta.

        Raises:
            InputError: the run has not come so far.
        """
        if self.state is None:
            raise InputError("the run has no support yet: run it first")
        self.state.write_into(self._model)
        return extract(self._model)

    async def _wait_for(self, members: Members, enough: Callable[[], bool]) -> None:
        seconds = self._settings.wait_seconds
        if not await members.wait(enough, seconds):
            there = ", ".join(member.name for member in members.present()) or "none"
            unfit = "".join(f"; {m.name}: {m.unfit}" for m in members.known.values() if m.unfit)
            raise TaskEdgeError(
                f"not enough devices came within {seconds:g} s ({self._settings.devices} are needed, there: "
                f"{there}{unfit}): start them, or ask for fewer"
            )

    def _enough(self, members: Members, planner: Planner) -> bool:
        """Whether rounds can begin: with as many devices as asked for, and after a resumption with the same ones."""
        ready = {member.name for member in members.ready()}
        return len(ready) >= self._settings.devices and ready >= set(planner.members)

    async def _choose(self, members: Members, log: RunLog) -> Support:
        """The support, from the sum of the devices' statistics."""
        asked = members.present()

        async def ask(member: Member) -> Statistics | None:
            message = self._beginning.ask_statistics(member.name, len(asked))
            try:
                answer = await self._link.ask(member.name, message, self._settings.first_deadline)
                return self._beginning.statistics(answer)
            except (NoAnswer, DeviceGone, MessageError) as error:
                log.write("no statistics", device=member.name, why=str(error))
                return None

        parts = [part for part in await asyncio.gather(*map(ask, asked)) if part is not None]
        if not parts:
            raise TaskEdgeError("no device gave statistics to choose weights by: the log says why")
        support = await asyncio.to_thread(self._beginning.choose, parts)
        log.write("support", entries=support.entries, share=support.share, devices=len(parts))
        return support

    async def _say_goodbye(self, members: Members, run: str, state: RunState) -> None:
        """Gives every device the last values, where it still hears."""

        async def tell(member: Member) -> None:
            facts = {"run": run, "since": member.holds, "version": state.version}
            with suppress(NoAnswer, DeviceGone, MessageError):
                await self._link.ask(
                    member.name, Message("done", facts, state.since(member.holds or 0)), GOODBYE_SECONDS
                )

        await asyncio.gather(*map(tell, members.ready()))
