"""A cooperative run as a Flower ``Strategy``, with the planner, checks and aggregation of ``taskedge.cooperation``.

    strategy = TaskEdgeStrategy(model, CooperationConfig(mode="deft", rounds=100, devices=4), labels=labels)
    strategy.start(grid, strategy.arrays(), num_rounds=100)
    save(strategy.delta(), "task.safetensors")

Flower provides connections, identities and presence. It delivers all answers of a round together, so plans are
calibrated by the training seconds that devices report, not by those of the links; and a round ends at the latest
``first_deadline`` seconds after it began.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.dispatch import TaskOutcome, answer_outcome, complete_task, task_message
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.coordinator.rounds import StoppingRule, mean_loss
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.coordinator.run_state import RunState
from taskedge.cooperation.flower.nodes import FlowerNodes
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.round_task import RoundTask
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.cooperation.scheduling.round_planner import RoundPlan, RoundPlanner
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError
from taskedge.planning.fleet_spec import FleetSpec
from taskedge.planning.plan import Plan


@dataclass(frozen=True)
class _StartedRun:
    """A run after the support is installed."""

    state: RunState
    planner: RoundPlanner
    install_message: Message


class TaskEdgeStrategy(Strategy):
    """A strategy for one run. Arguments: see :class:`taskedge.cooperation.coordinator.coordinator.Coordinator`.

    The name of a node is set by its ``--node-config`` (``name="jetson-1"``); the default is its id. Fleet files
    describe devices by these names, and the order of a device's rows depends on its name.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CooperationConfig,
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
        self._model, self._config, self._on_event = model, config, on_event
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
        self._run_id = secrets.token_hex(8)
        self._nodes = FlowerNodes(self._run_id, self._setup, config, self._log)
        self._stopping_rule = StoppingRule()
        self._run: _StartedRun | None = None
        self._plan: RoundPlan | None = None
        """The plan of the current round."""
        self._tasks: dict[int, RoundTask] = {}
        """The tasks of the current round by node, in the plan's order."""

    @property
    def state(self) -> RunState | None:
        """The state of the run; None until the support is installed."""
        return self._run.state if self._run else None

    # --- methods that Flower calls ------------------------------------------------------------------------------------

    def summary(self) -> None:
        """See ``Strategy.summary``."""
        config = self._config
        optimizer = config.resolved_server_optimizer
        getLogger("flwr").info("\ttaskedge: %s, %d rounds, %s", config.mode, config.rounds, optimizer)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Return the tasks of a round. New nodes are made ready before, by queries.

        Raises:
            InputError: There are more rounds than in the settings, or this object is used for a second run.
            InfeasiblePlan: No device can hold some block.
            TaskEdgeError: There are too few nodes.
        """
        run = self._make_ready(grid)
        if server_round > self._config.rounds or server_round != run.state.round + 1:
            raise InputError(
                f"round {server_round} after round {run.state.round} of {self._config.rounds}: a strategy is good "
                "for one run, and num_rounds cannot be more than the settings' rounds"
            )
        nodes = {session.name: node for node, session in self._nodes.present().items() if session.ready}
        infos = {name: info for name, node in nodes.items() if (info := self._nodes[node].info) is not None}
        plan, reason = run.planner.plan(infos, run.state.begin_round(server_round))
        if reason:
            self._log("planned", round=server_round, why=reason, **run.planner.summary(plan))
        self._plan = plan
        self._tasks = {
            nodes[task.device]: complete_task(task, run.state, plan.accumulate[task.device]) for task in plan.tasks
        }
        return [self._task_message(run, plan, node, task, server_round) for node, task in self._tasks.items()]

    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Validate the answers, aggregate them, and return the new values and metrics; None if no answer was usable.

        Raises:
            InputError: There are no tasks in this round.
            TrainingDiverged: No answer was finite, twice in a row.
            TaskEdgeError: No answer was usable for too long.
        """
        run, plan = self._run, self._plan
        replies_by_node = {reply.metadata.src_node_id: reply for reply in replies}
        if run is None or plan is None or not self._tasks:
            raise InputError(f"answers of round {server_round}, in which nothing was asked: configure_train first")
        outcomes = {
            node: self._outcome(run, task, replies_by_node.get(node), server_round)
            for node, task in self._tasks.items()
        }
        for node, outcome in outcomes.items():
            self._record(run, plan, node, outcome, server_round)
        self._tasks = {}
        answers = [outcome.answer for outcome in outcomes.values() if outcome.answer is not None]
        update = run.state.end_round(answers, server_round)
        for decision in update.decisions:
            self._log("revival", round=server_round, decided=decision)
        self._stopping_rule.check(server_round, list(outcomes.values()))
        loss = mean_loss(answers)
        if loss is None:
            return None, None
        metrics = {
            "loss": loss,
            "norm": update.norm,
            "accepted": len(answers),
            "tokens": sum(answer.tokens for answer in answers),
        }
        robust = {"scaled": update.scaled, "capped": update.capped, "by_mean": update.by_mean}
        self._log("round", round=server_round, version=run.state.version, **metrics, **robust)
        return self.arrays(), MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Return no messages: the server measures a run (``evaluate_fn`` of ``start``), or ``taskedge eval`` does."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[FlowerMessage]) -> MetricRecord | None:
        """Return None; see :meth:`configure_evaluate`."""
        return None

    # --- methods that a server app calls ------------------------------------------------------------------------------

    def arrays(self) -> ArrayRecord:
        """Return the trained values by name; before the first round only those of the fully trained parameters."""
        if self._run is None:
            parameters = dict(self._model.named_parameters())
            values = {name: parameters[name].detach().cpu() for name in self._setup.full_parameters}
        else:
            values = self._run.state.values
        return ArrayRecord({name: Array(value.numpy()) for name, value in values.items()})

    def delta(self) -> Delta:
        """Return the support with the present values as a delta. The model has these values afterwards.

        Raises:
            InputError: The run has not started.
        """
        if self._run is None:
            raise InputError("the run has no support yet: start it first")
        self._run.state.write_into(self._model)
        return extract(self._model)

    # --- one round ----------------------------------------------------------------------------------------------------

    def _make_ready(self, grid: Grid) -> _StartedRun:
        """Wait for enough nodes and install the support on all that are present; choose it before the first round."""
        self._nodes.update(grid, self._config.devices if self._run is None else 1)
        if self._run is None:
            statistics = self._nodes.statistics(grid)
            support = self._setup.choose_support(statistics)
            self._log("support", entries=support.num_entries, share=support.share, devices=len(statistics))
            state, planner = self._setup.install_support(support)
            install_message = self._setup.install_message(self._run_id, support, state)
            self._run = _StartedRun(state, planner, install_message)
        self._nodes.install(grid, self._run.install_message)
        return self._run

    def _task_message(
        self, run: _StartedRun, plan: RoundPlan, node: int, task: RoundTask, round_number: int
    ) -> FlowerMessage:
        deadline = self._config.first_deadline
        message = task_message(
            self._run_id,
            self._nodes[node].version or 0,
            task,
            run.state,
            round_number,
            deadline,
            run.planner.nominal(plan, task),
        )
        return FlowerMessage(to_content(message), node, MessageType.TRAIN, ttl=deadline, group_id=str(round_number))

    def _outcome(
        self, run: _StartedRun, task: RoundTask, reply: FlowerMessage | None, round_number: int
    ) -> TaskOutcome:
        """Return the outcome of a task. The state of the run is not changed."""
        if reply is None:
            return TaskOutcome("late", "no answer in time")
        if reply.has_error():
            return TaskOutcome("gone", str(reply.error.reason)[:300])
        try:
            answer = from_content(reply.content)
        except MessageError as error:
            return TaskOutcome("refused", f"no message: {error}")
        outcome = answer_outcome(answer, self._run_id, task, run.state, round_number, self._setup.max_tokens)
        return outcome if outcome.answer is None else replace(outcome, seconds=outcome.answer.seconds)

    def _record(self, run: _StartedRun, plan: RoundPlan, node: int, outcome: TaskOutcome, round_number: int) -> None:
        """Take the outcome of a task into account, and log it."""
        task, session, answer = self._tasks[node], self._nodes[node], outcome.answer
        fields: dict[str, Any]
        if answer is not None:
            session.version = run.state.version
            run.state.record(answer)
            run.planner.observe(plan, task, answer.seconds, answer.seconds)
            fields = {"tokens": answer.tokens, "loss": answer.loss}
        else:
            fields = {"why": outcome.reason}
            if outcome.result == "refused":
                self._nodes.record_refusal(node, outcome.reason)
            else:
                if outcome.result == "late":
                    run.planner.calibration.mark_late(session.name)
                self._nodes.mark_unresponsive(node)
        self._log(
            "task",
            round=round_number,
            device=session.name,
            blocks=list(task.blocks),
            result=outcome.result,
            **fields,
        )

    def _log(self, event: str, **fields: Any) -> None:
        self._on_event({"event": event, **fields})
