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

from taskedge.backbone.linears import candidates, head_parameters
from taskedge.backbone.table import BlockTable
from taskedge.cooperation.blocks import HEAD, trained_blocks
from taskedge.cooperation.estimates import merged, run_table, with_payload
from taskedge.cooperation.folder import RunFolder
from taskedge.cooperation.identity import base_digest
from taskedge.cooperation.link import CoordinatorLink, DeviceGone, NoAnswer
from taskedge.cooperation.log import LOG, Event, RunLog
from taskedge.cooperation.members import About, Member, Members
from taskedge.cooperation.messages import Message, MessageError
from taskedge.cooperation.planner import Planner
from taskedge.cooperation.revive import ReviveSettings
from taskedge.cooperation.rounds import Rounds
from taskedge.cooperation.settings import CooperateSettings
from taskedge.cooperation.state import RunState
from taskedge.cooperation.wire import Statistics, added, read_statistics, support_facts
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError, TaskEdgeError
from taskedge.forms.install import install, installation
from taskedge.planning.fleet import Fleet
from taskedge.selection.rules import RULES
from taskedge.selection.select import select
from taskedge.selection.statistics import INPUTS
from taskedge.selection.support import Support
from taskedge.training.seeds import derive

LENGTH = 128
"""Tokens of a row where nothing says other, for the cost model."""
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
        revive: schedule of idle blocks; None: the default one at the settings' ``active_share``.
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
        needs = set(RULES[settings.rule].needs) - {INPUTS}
        if needs:
            raise InputError(
                f"the rule {settings.rule!r} looks at {', '.join(sorted(needs))}, and devices send sums over inputs "
                "only: choose one that looks at inputs, or at no data"
            )
        self._link, self._model, self._settings, self._path = link, model, settings, folder
        self._whole = list(head_parameters(model) if whole is None else whole)
        self._labels, self._fleet, self._on_event = tuple(labels), fleet, on_event
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = min(LENGTH, positions) if positions else LENGTH
        self._table = merged(table, settings) if table is not None else run_table(model, length, settings)
        self._most_tokens = most_tokens or max(positions or 0, self._table.sequence_tokens)
        self._revive = revive or ReviveSettings(active_share=settings.active_share)
        self._digest = base_digest(model, self._whole)
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
        folder = RunFolder(self._path, self._settings, self._digest, self._labels, resume=resume)
        log = RunLog(folder.path / LOG, self._on_event)
        members = Members(self._link, folder.run, self._unfit, self._settings, log)
        loss = None
        members.start()
        try:
            await self._wait_for(members, lambda: len(members.present()) >= self._settings.devices)
            if folder.support is None:
                folder.keep(await self._choose(members, log))
            assert folder.support is not None
            state, planner = self._begin(folder.support)
            rounds = Rounds(self._link, members, state, planner, folder, log, self._most_tokens)
            if folder.resumed:
                rounds.load(*folder.resumed)
                log.write("resumed", round=state.round, version=state.version)
            else:
                await rounds.commit()  # devices are about to be told where the head begins
            members.prepare(self._install_message(folder.run, folder.support, state), planner.pace.cold)
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

    def _unfit(self, about: About) -> str:
        """Why a device cannot take part; empty: it can."""
        if about.base != self._digest:
            return f"it holds another base ({about.base}, not {self._digest}): install the same model there"
        if about.labels != self._labels:
            return f"its labels are {list(about.labels)}, not {list(self._labels)}"
        return ""

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
        s = self._settings
        layers = candidates(self._model)
        shapes = {name: layer.shape for name, layer in layers.items()}
        asked = members.present()
        batches = -(-s.calibration // len(asked))

        async def ask(member: Member) -> Statistics | None:
            facts = {"needs": [INPUTS], "batches": batches, "batch_size": s.batch_size}
            message = Message("statistics", facts | {"seed": derive(s.seed, member.name)})
            try:
                return read_statistics(await self._link.ask(member.name, message, s.first_deadline), shapes)
            except (NoAnswer, DeviceGone, MessageError) as error:
                log.write("no statistics", device=member.name, why=str(error))
                return None

        parts = [part for part in await asyncio.gather(*map(ask, asked)) if part is not None]
        if not parts:
            raise TaskEdgeError("no device gave statistics to choose weights by: the log says why")
        support = await asyncio.to_thread(
            select,
            self._model,
            measured=added(parts),
            budget=s.budget if s.per_neuron is None else None,
            per_neuron=s.per_neuron,
            rule=s.rule,
            allocation=s.allocation,
            max_columns=s.max_columns,
            seed=s.seed,
        )
        log.write("support", entries=support.entries, share=support.share, devices=len(parts))
        return support

    def _begin(self, support: Support) -> tuple[RunState, Planner]:
        """The support installed on the coordinator's own model, and what follows from it."""
        if installation(self._model) is None:
            install(self._model, support, trainable=self._whole, step=self._settings.step)
        blocks = trained_blocks(self._model, self._sizes)
        self.state = state = RunState(self._model, blocks, self._whole, self._settings, self._revive)
        sizes = {name: value.numel() for name, value in state.values.items()}
        head = sum(sizes[name] for name in blocks.names[HEAD])
        return state, Planner(with_payload(self._table, blocks, sizes), head, self._fleet, self._settings)

    @property
    def _sizes(self) -> list[int]:
        return [len(names) for names in self._table.layers]

    def _install_message(self, run: str, support: Support, state: RunState) -> Message:
        facts, tensors = support_facts(support)
        head = {f"head/{name}": value for name, value in state.head_start().items()}
        more = {"run": run, "step": self._settings.step, "sizes": self._sizes}
        return Message("install", {**more, "support": facts}, {**tensors, **head})

    async def _say_goodbye(self, members: Members, run: str, state: RunState) -> None:
        """Gives every device the last values, where it still hears."""

        async def tell(member: Member) -> None:
            facts = {"run": run, "since": member.holds, "version": state.version}
            with suppress(NoAnswer, DeviceGone, MessageError):
                await self._link.ask(
                    member.name, Message("done", facts, state.since(member.holds or 0)), GOODBYE_SECONDS
                )

        await asyncio.gather(*map(tell, members.ready()))
