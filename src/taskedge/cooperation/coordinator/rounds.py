"""The rounds of a run: plan, tasks, answers, one step, one version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.device_sessions import Member, Members
from taskedge.cooperation.coordinator.dispatch import Returned, exchange
from taskedge.cooperation.coordinator.event_log import RunLog
from taskedge.cooperation.coordinator.run_folder import RunFolder
from taskedge.cooperation.coordinator.run_state import RunState, Step
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.protocol.trained_blocks import TrainedBlocks
from taskedge.cooperation.protocol.validation import NOT_FINITE, Accepted
from taskedge.cooperation.scheduling.round_planner import Planner, RoundPlan
from taskedge.cooperation.scheduling.round_tasks import Share, device_flops
from taskedge.cooperation.transport.links import CoordinatorLink
from taskedge.errors import TaskEdgeError, TrainingDiverged
from taskedge.planning.problem import InfeasiblePlan

EMPTY_ROUNDS = 5
"""Rounds in a row without a usable answer after which a run gives up."""
DIVERGED_ROUNDS = 2
"""Such rounds in which every answer was not finite: then it is the run that diverged, not its devices."""


class Rounds:
    """Runs one round after the other over what the run is.

    Args:
        most_tokens: what a row can hold at most, as a bound for the weights that devices claim.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        members: Members,
        state: RunState,
        planner: Planner,
        folder: RunFolder,
        log: RunLog,
        most_tokens: int,
    ) -> None:
        self._link, self._members, self._state, self._planner = link, members, state, planner
        self._folder, self._log, self._most_tokens = folder, log, most_tokens
        self._settings = state.settings
        self._hope = Hope()

    async def run_one(self) -> float | None:
        """One round, from the plan to the committed version; returns its mean loss, None where no answer was usable.

        Raises:
            InfeasiblePlan: no device can hold some block, and no other came.
            TrainingDiverged: all answers are not finite.
            TaskEdgeError: no devices, or no usable answer for too long; a version that cannot be written.
        """
        state, number = self._state, self._state.round + 1
        plan, busy = await self._planned(state.begin(number), number)
        predicted = {share.device: self._planner.predicted(plan, share) for share in plan.shares}
        started = time.monotonic()
        returned = await asyncio.gather(*(self._ask(member, share, plan, number) for member, share in busy))
        accepted = []
        for (member, share), one in zip(busy, returned, strict=True):
            self._book(member, share, one, plan, number, predicted[member.name])
            if one.accepted is not None:
                accepted.append(one.accepted)
        step = state.apply(accepted, number) if accepted else Step()
        state.round = number
        decided = state.revival.ended(number, step.gains)
        await self.commit()
        for words in decided:
            self._log.write("revival", round=number, decided=words)
        loss = mean_loss(accepted)
        self._write(
            plan,
            accepted,
            number,
            time.monotonic() - started,
            predicted=max(predicted.values()),
            loss=loss,
            norm=step.norm,
        )
        self._hope.after(number, returned)
        return loss

    async def _planned(self, payload: tuple[int, ...], number: int) -> tuple[RoundPlan, list[tuple[Member, Share]]]:
        """The plan, and who is there to carry it out."""
        wait = self._settings.wait_seconds
        while True:
            if not await self._members.wait(lambda: bool(self._members.ready()), wait):
                raise TaskEdgeError(
                    f"round {number}: no device has been ready for {wait:g} s: resume the run when they are back"
                )
            ready = {member.name: member for member in self._members.ready()}
            abouts = {name: member.about for name, member in ready.items() if member.about is not None}
            try:
                plan, why = self._planner.plan(abouts, payload)
            except InfeasiblePlan as error:
                self._log.write("waiting", round=number, why=str(error))
                if not await self._members.wait(partial(self._others_than, ready), wait):
                    raise
                continue
            if why:
                self._log.write("planned", round=number, why=why, **self._planner.summary(plan))
            return plan, [(ready[share.device], share) for share in plan.shares]

    def _others_than(self, before: dict[str, Member]) -> bool:
        return any(member.name not in before for member in self._members.ready())

    async def _ask(self, member: Member, share: Share, plan: RoundPlan, number: int) -> Returned:
        s = self._settings
        known = self._planner.pace.known(member.name)
        return await exchange(
            self._link,
            self._folder.run,
            member,
            share,
            self._state,
            number,
            accumulate=plan.accumulate[member.name],
            deadline=max(s.least_deadline, s.deadline_factor * self._planner.predicted_round(plan))
            if known
            else s.first_deadline,
            most_tokens=self._most_tokens,
            stated=self._planner.stated(plan, share),
        )

    def _book(
        self, member: Member, share: Share, one: Returned, plan: RoundPlan, number: int, predicted: float
    ) -> None:
        """Takes note of what became of a task."""
        if one.accepted is not None:
            self._state.norms.add(one.norms)
            if member.visit == one.visit:  # else it is a new process by now, of which this says nothing
                member.holds = self._state.version
                self._planner.observe(plan, share, one.seconds, one.accepted.seconds)
        elif one.result == "refused":
            self._members.refuse(member, one.why)
        else:
            if one.result == "late":
                self._planner.pace.late(member.name)
            if member.visit == one.visit:
                self._members.unsure(member)
        answer = one.accepted
        self._log.write(
            "task",
            round=number,
            device=member.name,
            blocks=list(share.blocks),
            result=one.result,
            why=one.why,
            bytes_down=one.bytes_down,
            bytes_up=one.bytes_up,
            predicted_seconds=predicted,
            observed_seconds=one.seconds,
            compute_seconds=answer.seconds if answer else None,
            stated_seconds=self._planner.stated(plan, share)["compute_seconds"],
            real_seconds=answer.real_seconds if answer else None,
            tokens=answer.tokens if answer else 0,
            loss=answer.loss if answer else None,
            refused=member.refused,
        )

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up a committed version."""
        self._state.load(facts, tensors)
        self._planner.load(facts["planner"])
        self._members.load(facts["members"])

    async def commit(self) -> None:
        """Writes what the run is now as a version.

        Raises:
            InputError: it cannot be written; the version before is whole.
        """
        facts, tensors = self._state.saved()
        facts |= {"planner": self._planner.state(), "members": self._members.state()}
        await asyncio.to_thread(versions.commit, self._folder.path, self._state.round, facts, tensors)

    def _write(
        self,
        plan: RoundPlan,
        accepted: Sequence[Accepted],
        number: int,
        seconds: float,
        *,
        predicted: float,
        loss: float | None,
        norm: float,
    ) -> None:
        everything = plan.everything or plan.shares
        table = self._planner.table
        self._log.write(
            "round",
            round=number,
            version=self._state.version,
            active=list(plan.active),
            active_values=sum(plan.payload),
            devices=len(plan.shares),
            accepted=len(accepted),
            loss=loss,
            norm=norm,
            rate=self._settings.rate(number),
            tokens=sum(answer.tokens for answer in accepted),
            predicted_seconds=predicted,
            seconds=seconds,
            device_flops=device_flops(table, plan.shares, plan.tokens),
            device_flops_all_active=device_flops(table, everything, plan.tokens),
            upload_bytes=self._upload(plan.shares, self._state.training),
            upload_bytes_all_active=self._upload(everything, self._state.blocks),
        )

    def _upload(self, planned: Sequence[Share], blocks: TrainedBlocks) -> int:
        """Bytes of values that these shares send up."""
        names = [name for share in planned for name in blocks.of(share.blocks)]
        return bytes_per_value(self._settings.upload) * sum(self._state.values[name].numel() for name in names)


class Hope:
    """Whether a run is worth going on with."""

    def __init__(self) -> None:
        self._empty = self._diverged = 0

    def after(self, round_number: int, returned: Sequence[Returned]) -> None:
        """Takes note of what became of a round's tasks.

        Raises:
            TrainingDiverged: all answers are not finite.
            TaskEdgeError: no usable answer for too long.
        """
        if any(one.accepted for one in returned):
            self._empty = self._diverged = 0
            return
        self._empty += 1
        self._diverged += all(one.why.startswith(NOT_FINITE) for one in returned)
        if self._diverged >= DIVERGED_ROUNDS:
            raise TrainingDiverged(f"in round {round_number} no device's answer was finite: try a lower learning rate")
        if self._empty >= EMPTY_ROUNDS:
            why = "; ".join(sorted({f"{one.result} {one.why}".strip() for one in returned}))
            raise TaskEdgeError(
                f"{self._empty} rounds in a row without a usable answer (the last: {why}): "
                "see to the devices, then resume the run"
            )


def mean_loss(accepted: Sequence[Accepted]) -> float | None:
    """Weighted by tokens; None where there is no answer."""
    tokens = sum(answer.tokens for answer in accepted)
    return sum(answer.tokens * answer.loss for answer in accepted) / tokens if tokens else None
