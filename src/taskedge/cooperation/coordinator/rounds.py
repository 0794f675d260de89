"""The rounds of a run. One round: configure (plan and tasks), dispatch, validate, aggregate, commit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.device_sessions import DeviceSession, DeviceSessions
from taskedge.cooperation.coordinator.dispatch import TaskOutcome, complete_task, dispatch_task
from taskedge.cooperation.coordinator.event_log import EventLog
from taskedge.cooperation.coordinator.run_folder import RunFolder
from taskedge.cooperation.coordinator.run_state import RoundUpdate, RunState
from taskedge.cooperation.protocol.quantization import bytes_per_value
from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.cooperation.protocol.validation import NOT_FINITE, AcceptedAnswer
from taskedge.cooperation.scheduling.assign_blocks import device_flops
from taskedge.cooperation.scheduling.round_planner import RoundPlan, RoundPlanner
from taskedge.cooperation.scheduling.trained_blocks import TrainedBlocks
from taskedge.cooperation.transport.links import CoordinatorLink, trouble_text
from taskedge.cooperation.transport.reader_thread import READER
from taskedge.errors import TaskEdgeError, TrainingDiverged
from taskedge.planning.problem import InfeasiblePlan

MAX_EMPTY_ROUNDS = 5
"""Rounds in a row without a usable answer after which a run stops."""
MAX_DIVERGED_ROUNDS = 2
"""Rounds in a row in which no answer was finite after which a run stops: then the run diverged, not its devices."""


@dataclass(frozen=True)
class _Assignment:
    """A task of a round and the device that gets it."""

    session: DeviceSession
    task: RoundTask
    predicted_seconds: float


class Rounds:
    """Runs the rounds of a run, one after the other.

    Args:
        link: The coordinator's end.
        sessions: The devices.
        state: The state of the run, which each round changes.
        planner: Plans the rounds.
        folder: The run's folder, for its versions.
        log: Receives the events.
        max_tokens: Most tokens in a row, as a bound for the weights that devices claim.
    """

    def __init__(
        self,
        link: CoordinatorLink,
        sessions: DeviceSessions,
        state: RunState,
        planner: RoundPlanner,
        folder: RunFolder,
        log: EventLog,
        max_tokens: int,
    ) -> None:
        self._link, self._sessions, self._state, self._planner = link, sessions, state, planner
        self._folder, self._log, self._max_tokens = folder, log, max_tokens
        self._config = state.config
        self._stopping_rule = StoppingRule()

    async def run_round(self) -> float | None:
        """Run one round, from the plan to the committed version.

        Returns:
            The mean loss; None if no answer was usable.

        Raises:
            InfeasiblePlan: No device can hold some block, and no other device came.
            TrainingDiverged: No answer was finite.
            TaskEdgeError: There are no devices, or no usable answers for too long, or the version cannot be written.
        """
        round_number = self._state.round + 1
        plan, assignments = await self._configure(round_number)
        started = time.monotonic()
        predicted = self._planner.predicted_round_seconds(plan)
        outcomes = await asyncio.gather(*(self._dispatch(each, plan, round_number, predicted) for each in assignments))
        for assignment, outcome in zip(assignments, outcomes, strict=True):
            self._record(assignment, outcome, plan, round_number)
        answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
        update = await READER.run(partial(self._state.end_round, answers, round_number))
        await self.commit()
        for decision in update.decisions:
            self._log.write("revival", round=round_number, decided=decision)
        predicted_seconds = max(assignment.predicted_seconds for assignment in assignments)
        self._log_round(plan, answers, update, predicted_seconds, time.monotonic() - started)
        self._stopping_rule.check(round_number, outcomes)
        return mean_loss(answers)

    async def commit(self) -> None:
        """Write the present state as a version.

        Raises:
            InputError: It cannot be written. The version before is intact.
        """
        fields, tensors = self._state.state_dict()
        fields |= {"planner": self._planner.state_dict(), "members": self._sessions.state_dict()}
        fields["run_file"] = self._folder.run_fields
        await asyncio.to_thread(versions.commit, self._folder.path, self._state.round, fields, tensors)

    def load_state_dict(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore the state of a committed version."""
        self._state.load_state_dict(fields, tensors)
        self._planner.load_state_dict(fields["planner"])
        self._sessions.load_state_dict(fields["members"])

    async def _configure(self, round_number: int) -> tuple[RoundPlan, list[_Assignment]]:
        """Return the plan of a round and its tasks, once there are devices that can carry it out."""
        payload = self._state.begin_round(round_number)
        seconds = self._config.wait_seconds
        while True:
            if not await self._sessions.wait(lambda: bool(self._sessions.ready()), seconds):
                raise TaskEdgeError(
                    f"round {round_number}: no device has been ready for {seconds:g} s{trouble_text(self._link)}: "
                    "resume the run when they are back"
                )
            ready = {session.name: session for session in self._sessions.ready()}
            infos = {name: session.info for name, session in ready.items() if session.info is not None}
            try:
                plan, reason = self._planner.plan(infos, payload)
                break
            except InfeasiblePlan as error:
                self._log.write("waiting", round=round_number, why=str(error))
                if not await self._sessions.wait(partial(self._has_device_besides, ready), seconds):
                    raise
        if reason:
            self._log.write("planned", round=round_number, why=reason, **self._planner.summary(plan))
        return plan, [
            _Assignment(
                session=ready[task.device],
                task=complete_task(task, self._state, plan.accumulate[task.device]),
                predicted_seconds=self._planner.predicted_seconds(plan, task),
            )
            for task in plan.tasks
        ]

    def _has_device_besides(self, sessions: Mapping[str, DeviceSession]) -> bool:
        return any(session.name not in sessions for session in self._sessions.ready())

    async def _dispatch(
        self, assignment: _Assignment, plan: RoundPlan, round_number: int, round_seconds: float
    ) -> TaskOutcome:
        config, device = self._config, assignment.session.name
        if self._planner.calibration.is_known(device):
            predicted = config.deadline_factor * round_seconds
            # a device's first task had to end within the first deadline, so no later one takes many times that
            longest = config.deadline_factor * config.first_deadline
            deadline = min(longest, max(config.min_deadline, predicted))
        else:
            deadline = config.first_deadline
        return await dispatch_task(
            self._link,
            self._folder.run_id,
            assignment.session,
            assignment.task,
            self._state,
            round_number,
            deadline=deadline,
            max_tokens=self._max_tokens,
            nominal=self._planner.nominal(plan, assignment.task),
        )

    def _record(self, assignment: _Assignment, outcome: TaskOutcome, plan: RoundPlan, round_number: int) -> None:
        """Take the outcome of a task into account, and log it."""
        session, task, answer = assignment.session, assignment.task, outcome.answer
        same_session = session.session_id == outcome.session_id  # otherwise another process is there now
        if answer is not None:
            session.num_unanswered = 0
            self._state.record(answer)
            if same_session:
                session.version = self._state.version
                self._planner.observe(plan, task, outcome.seconds, answer.seconds)
        elif outcome.result == "refused":
            self._sessions.record_refusal(session, outcome.reason)
        else:
            if outcome.result == "late":
                self._planner.calibration.mark_late(session.name)
            if outcome.result in ("late", "unready"):
                self._sessions.record_unanswered(session, outcome.result)
            if same_session:
                self._sessions.mark_unresponsive(session)
        self._log.write(
            "task",
            round=round_number,
            device=session.name,
            blocks=list(task.blocks),
            result=outcome.result,
            why=outcome.reason,
            bytes_down=outcome.bytes_down,
            bytes_up=outcome.bytes_up,
            predicted_seconds=assignment.predicted_seconds,
            observed_seconds=outcome.seconds,
            compute_seconds=answer.seconds if answer else None,
            stated_seconds=self._planner.nominal(plan, task)["compute_seconds"],
            real_seconds=answer.real_seconds if answer else None,
            tokens=answer.tokens if answer else 0,
            loss=answer.loss if answer else None,
            refused=session.num_refused,
        )

    def _log_round(
        self,
        plan: RoundPlan,
        answers: Sequence[AcceptedAnswer],
        update: RoundUpdate,
        predicted_seconds: float,
        seconds: float,
    ) -> None:
        unfrozen_tasks = plan.unfrozen_tasks or plan.tasks
        table = self._planner.table
        self._log.write(
            "round",
            round=self._state.round,
            version=self._state.version,
            active=list(plan.active),
            active_values=sum(plan.payload),
            devices=len(plan.tasks),
            accepted=len(answers),
            loss=mean_loss(answers),
            norm=update.norm,
            scaled=list(update.scaled),
            capped=list(update.capped),
            by_mean=list(update.by_mean),
            rate=self._config.lr_factor(self._state.round),
            tokens=sum(answer.tokens for answer in answers),
            predicted_seconds=predicted_seconds,
            seconds=seconds,
            device_flops=device_flops(table, plan.tasks, plan.tokens),
            device_flops_all_active=device_flops(table, unfrozen_tasks, plan.tokens),
            upload_bytes=self._upload_bytes(plan.tasks, self._state.training),
            upload_bytes_all_active=self._upload_bytes(unfrozen_tasks, self._state.blocks),
        )

    def _upload_bytes(self, tasks: Sequence[RoundTask], blocks: TrainedBlocks) -> int:
        """Return the bytes of values that these tasks send up."""
        times = Counter(task.blocks for task in tasks)  # with many devices most tasks have the same blocks
        values = self._state.values
        per_task = {held: sum(values[name].numel() for name in blocks.names_in(held)) for held in times}
        return bytes_per_value(self._config.upload) * sum(times[held] * count for held, count in per_task.items())


class StoppingRule:
    """Decides when a run without usable answers stops."""

    def __init__(self) -> None:
        self._empty_rounds = self._diverged_rounds = 0

    def check(self, round_number: int, outcomes: Sequence[TaskOutcome]) -> None:
        """Count the outcomes of a round's tasks.

        Raises:
            TrainingDiverged: No answer was finite, ``MAX_DIVERGED_ROUNDS`` rounds in a row.
            TaskEdgeError: No answer was usable, ``MAX_EMPTY_ROUNDS`` rounds in a row.
        """
        if any(outcome.answer is not None for outcome in outcomes):
            self._empty_rounds = self._diverged_rounds = 0
            return
        self._empty_rounds += 1
        if all(outcome.reason.startswith(NOT_FINITE) for outcome in outcomes):
            self._diverged_rounds += 1
        if self._diverged_rounds >= MAX_DIVERGED_ROUNDS:
            raise TrainingDiverged(f"in round {round_number} no device's answer was finite: try a lower learning rate")
        if self._empty_rounds >= MAX_EMPTY_ROUNDS:
            reasons = "; ".join(sorted({f"{outcome.result} {outcome.reason}".strip() for outcome in outcomes}))
            raise TaskEdgeError(
                f"{self._empty_rounds} rounds in a row without a usable answer (the last: {reasons}): "
                "see to the devices, then resume the run"
            )


def mean_loss(answers: Sequence[AcceptedAnswer]) -> float | None:
    """Return the mean of the answers' losses, weighted by tokens; None without an answer."""
    tokens = sum(answer.tokens for answer in answers)
    return sum(answer.tokens * answer.loss for answer in answers) / tokens if tokens else None
