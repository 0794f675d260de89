"""The coordinator of a cooperative run: from the devices that are present to a delta, resumable at any moment.

coordinator = Coordinator(link, model, config, Path("task.run"))
result = await coordinator.run()
save(coordinator.delta(), "task.safetensors")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.device_sessions import DeviceSession, DeviceSessions
from taskedge.cooperation.coordinator.event_log import LOG_FILE, Event, EventLog
from taskedge.cooperation.coordinator.rounds import Rounds
from taskedge.cooperation.coordinator.run_folder import RunFolder
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.protocol.bounds import short_reason
from taskedge.cooperation.protocol.message import HEADER_ONLY, Message, MessageError
from taskedge.cooperation.protocol.payloads import Statistics
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.cooperation.scheduling.round_planner import RoundPlanner
from taskedge.cooperation.transport.links import CoordinatorLink, DeviceGone, NoAnswer, trouble_text
from taskedge.cooperation.transport.reader_thread import READER
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import Plan
from taskedge.selection.support import Support

GOODBYE_SECONDS = 10.0
"""Seconds that a device has to confirm the end of the run."""


@dataclass(frozen=True)
class CooperationResult:
    """Figures of a run."""

    rounds: int
    version: int
    """Number of rounds that changed values."""
    loss: float | None
    """Mean loss of the last round with a usable answer in this process."""
    entries: int
    share: float
    head: int
    """Number of values trained in full, which ``entries`` does not count."""
    seconds: float
    bytes_down: dict[str, dict[str, int]]
    bytes_up: dict[str, dict[str, int]]
    """By device and kind of message, in this process."""


class Coordinator:
    """Runs one cooperative run.

    Args:
        link: The coordinator's end.
        model: The base with a head. The run installs a support on it, and leaves it with the last values.
        config: The run's settings.
        folder: The run's folder, with its support, versions and event log. ``run(resume=True)`` resumes from it.
        full_parameters: Names of the parameters that are trained in full; None: the model's head.
        labels: The classes. Devices with others take no part.
        fleet: Costs and links of devices. Devices that it does not list are taken as they describe themselves.
        table: The model's block table, one block per layer; None: computed for rows of 128 token ids.
        max_tokens: Most tokens in a row; None: the model's number of positions.
        freezing: Schedule of idle modules; None: the default one with the settings' ``active_share``.
        plan: Plan to follow while its devices are ready and can hold their blocks; None: rounds are planned from costs.
        on_event: Called with each event of the log after it is written.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        model: nn.Module,
        config: CooperationConfig,
        folder: Path,
        *,
        full_parameters: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        fleet: FleetSpec | None = None,
        table: BlockTable | None = None,
        max_tokens: int | None = None,
        freezing: FreezingConfig | None = None,
        plan: Plan | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._link, self._model, self._config, self._path = link, model, config, folder
        self._on_event = on_event
        self._setup = RunSetup(
            model,
            config,
            full_parameters=full_parameters,
            labels=labels,
            fleet=fleet,
            table=table,
            max_tokens=max_tokens,
            freezing=freezing,
            plan=plan,
        )
        self.state: RunState | None = None
        """The state of the run; None until the support is installed."""

    async def run(self, *, resume: bool = False) -> CooperationResult:
        """Run all rounds, or with ``resume`` those after the last committed version.

        Raises:
            InputError: The folder cannot be used (see :class:`RunFolder`), or the disk is full.
            InfeasiblePlan: No device can hold some block.
            TaskEdgeError: Too few devices came, or no answer was usable for too long (see :class:`Rounds`).
        """
        started = time.monotonic()
        setup = self._setup
        folder = RunFolder(
            self._path,
            self._config,
            setup.base_digest,
            setup.labels,
            plan_digest=setup.plan_digest,
            resume=resume,
        )
        log = EventLog(folder.path / LOG_FILE, self._on_event)
        if folder.healed:
            log.write("restored", why=folder.healed)
        sessions = DeviceSessions(self._link, folder.run_id, setup.unfit_reason, self._config, log)
        loss = None
        sessions.start()
        try:
            await self._wait_for(sessions, lambda: len(sessions.present()) >= self._config.devices)
            if folder.support is None:
                folder.save_support(await self._choose_support(sessions, log))
            assert folder.support is not None
            self.state, planner = setup.install_support(folder.support)
            state = self.state
            rounds = Rounds(self._link, sessions, state, planner, folder, log, setup.max_tokens)
            if folder.resumed:
                rounds.load_state_dict(*folder.resumed)
                healed = planner.calibration.healed
                if healed:
                    log.write("healed", devices=healed, why="their saved calibration was no usable number")
                log.write("resumed", round=state.round, version=state.version)
            else:
                await rounds.commit()  # before a device gets the initial head: a resumed run must have the same one
            install_message = setup.install_message(folder.run_id, folder.support, state)
            sessions.install_on_all(install_message, planner.calibration.mark_cold_start)
            if not await sessions.wait(lambda: self._enough_ready(sessions, planner), self._config.wait_seconds):
                self._go_on_with_fewer(sessions, log)
            while state.round < self._config.rounds:
                loss = await rounds.run_round() or loss
            await self._send_final_values(sessions, folder.run_id, state)
            log.write("done", round=state.round, version=state.version)
        finally:
            await sessions.stop()
            if self.state is not None:
                self.state.write_into(self._model)
        return CooperationResult(
            rounds=state.round,
            version=state.version,
            loss=loss,
            entries=folder.support.num_entries,
            share=folder.support.share,
            head=sum(value.numel() for value in state.initial_full_parameters().values()),
            seconds=time.monotonic() - started,
            bytes_down={name: dict(self._link.traffic(name)[0].bytes) for name in sorted(sessions.by_name)},
            bytes_up={name: dict(self._link.traffic(name)[1].bytes) for name in sorted(sessions.by_name)},
        )

    def delta(self) -> Delta:
        """Return the support with the present values as a delta.

        Raises:
            InputError: The run has not chosen a support yet.
        """
        if self.state is None:
            raise InputError("the run has no support yet: run it first")
        self.state.write_into(self._model)
        return extract(self._model)

    async def _wait_for(self, sessions: DeviceSessions, condition: Callable[[], bool]) -> None:
        if not await sessions.wait(condition, self._config.wait_seconds):
            raise self._too_few(sessions)

    def _too_few(self, sessions: DeviceSessions) -> TaskEdgeError:
        present = ", ".join(session.name for session in sessions.present()) or "none"
        unfit = "".join(f"; {s.name}: {s.unfit_reason}" for s in sessions.by_name.values() if s.unfit_reason)
        config = self._config
        return TaskEdgeError(
            f"not enough devices came within {config.wait_seconds:g} s ({config.devices} are needed, there: "
            f"{present}{unfit}){trouble_text(self._link)}: start them, or ask for fewer"
        )

    def _go_on_with_fewer(self, sessions: DeviceSessions, log: EventLog) -> None:
        """Begin with the devices that are ready: enough came, and one that is not ready must not end the run.

        Raises:
            TaskEdgeError: None is ready.
        """
        ready = [session.name for session in sessions.ready()]
        if not ready:
            raise self._too_few(sessions)
        why = f"{len(ready)} of {self._config.devices} devices are ready after {self._config.wait_seconds:g} s"
        log.write("fewer", why=why, ready=ready)

    def _enough_ready(self, sessions: DeviceSessions, planner: RoundPlanner) -> bool:
        """Return whether rounds can begin: with the number of devices set, and if resumed, with the planned ones."""
        ready = {session.name for session in sessions.ready()}
        quarantined = sessions.quarantined()
        needed = max(1, self._config.devices - len(quarantined))  # a liar does not keep the others waiting
        return len(ready) >= needed and ready | quarantined >= set(planner.planned_devices)

    async def _choose_support(self, sessions: DeviceSessions, log: EventLog) -> Support:
        """Choose the support by the sum of the devices' statistics."""
        present = sessions.present()

        by_name = {session.name: session for session in present}
        limits = self._setup.statistics_limits

        def refuse(device: str, why: str) -> None:
            log.write("no statistics", device=device, why=why)
            sessions.record_refusal(by_name[device], why)

        async def request(session: DeviceSession) -> Statistics | None:
            message = self._setup.statistics_request(session.name, len(present))
            try:
                answer = await self._link.request(session.name, message, self._config.first_deadline, limits)
                if answer.kind == "error":  # it says so itself
                    log.write("no statistics", device=session.name, why=short_reason(answer.header.get("why")))
                    return None
                return await READER.run(partial(self._setup.read_statistics_answer, answer))
            except MessageError as error:
                refuse(session.name, short_reason(error))
            except (NoAnswer, DeviceGone) as error:
                log.write("no statistics", device=session.name, why=str(error))
            return None

        answers = await asyncio.gather(*map(request, present))
        parts = {name: part for name, part in zip(by_name, answers, strict=True) if part is not None}
        audit = await asyncio.to_thread(self._setup.audit_statistics, parts, len(present))
        for device, why in audit.refused.items():
            refuse(device, why)
        for device, why in audit.capped.items():
            log.write("capped statistics", device=device, why=why)
        if not audit.accepted:
            raise TaskEdgeError("no device gave statistics to choose weights by: the log says why")
        support = await asyncio.to_thread(self._setup.choose_support, list(audit.accepted.values()))
        log.write("support", entries=support.num_entries, share=support.share, devices=len(audit.accepted))
        return support

    async def _send_final_values(self, sessions: DeviceSessions, run_id: str, state: RunState) -> None:
        """Send the last values to every device that still answers."""

        async def send(session: DeviceSession) -> None:
            header = {"run": run_id, "since": session.version, "version": state.version}
            message = Message("done", header, state.values_since(session.version or 0))
            with suppress(NoAnswer, DeviceGone, MessageError):
                await self._link.request(session.name, message, GOODBYE_SECONDS, HEADER_ONLY)

        await asyncio.gather(*map(send, sessions.ready()))
