"""Our scheduler as a Flower ``Strategy``: plans, tasks, checks, mean and step are those of ``taskedge.cooperation``.

    strategy = TaskEdgeStrategy(model, CooperateSettings(mode="deft", rounds=100, devices=4), labels=labels)
    strategy.start(grid, strategy.arrays(), num_rounds=100)
    strategy.delta().save("task.safetensors")

What Flower does instead of us: connections, identities, and who is there. It hands answers over together, so plans
follow the seconds that devices say they trained, not those of the link; and a round ends ``first_deadline`` seconds
after it began at the latest.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from taskedge.backbone.cost_table import BlockTable
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.dispatch import Returned, judged, task_message
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.coordinator.rounds import Hope, mean_loss
from taskedge.cooperation.coordinator.run_setup import Beginning
from taskedge.cooperation.coordinator.run_state import RunState, Step
from taskedge.cooperation.flower.nodes import Nodes
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.validation import Refused
from taskedge.cooperation.scheduling.freezing import ReviveSettings
from taskedge.cooperation.scheduling.round_planner import Planner, RoundPlan
from taskedge.cooperation.scheduling.round_tasks import Share
from taskedge.delta.delta import Delta
from taskedge.delta.extract import extract
from taskedge.errors import InputError
from taskedge.planning.fleet_spec import Fleet


@dataclass(frozen=True)
class _Begun:
    """What there is from the first round on."""

    state: RunState
    planner: Planner
    install: Message


class TaskEdgeStrategy(Strategy):
    """One run. The arguments are those of :class:`taskedge.cooperation.coordinator.coordinator.Coordinator`.

    A node is called what its ``--node-config`` says (``name="jetson-1"``), else by its id: names are what a fleet file
    describes devices by, and what a device's order of rows is drawn from.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: CooperateSettings,
        *,
        whole: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        fleet: Fleet | None = None,
        table: BlockTable | None = None,
        most_tokens: int | None = None,
        revive: ReviveSettings | None = None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._model, self._settings, self._on_event = model, settings, on_event
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
        self._run = secrets.token_hex(8)
        self._nodes = Nodes(self._run, self._beginning, settings, self._log)
        self._hope = Hope()
        self._begun: _Begun | None = None
        self._asked: dict[int, tuple[Share, RoundPlan]] = {}
        """Who was asked what in this round, in the plan's order."""

    @property
    def state(self) -> RunState | None:
        """What the run is; None until the support is installed."""
        return self._begun.state if self._begun else None

    # what Flower calls

    def summary(self) -> None:
        """See ``Strategy.summary``."""
        s = self._settings
        getLogger("flwr").info("\ttaskedge: %s, %d rounds, %s", s.mode, s.rounds, s.server_optimiser)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """A task for every node of the plan; nodes that came are made ready first, by queries.

        Raises:
            InputError: more rounds than the settings plan for, or a second run of this object.
            InfeasiblePlan: no device can hold some block.
            TaskEdgeError: too few nodes.
        """
        run = self._ready(grid)
        if server_round > self._settings.rounds or server_round != run.state.round + 1:
            raise InputError(
                f"round {server_round} after round {run.state.round} of {self._settings.rounds}: a strategy is good "
                "for one run, and num_rounds cannot be more than the settings' rounds"
            )
        present = {member.name: node for node, member in self._nodes.present().items() if member.ready}
        abouts = {name: about for name, node in present.items() if (about := self._nodes[node].about)}
        plan, why = run.planner.plan(abouts, run.state.begin(server_round))
        if why:
            self._log("planned", round=server_round, why=why, **run.planner.summary(plan))
        self._asked = {present[share.device]: (share, plan) for share in plan.shares}
        return [self._task(run, node, server_round) for node in self._asked]

    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Checks, one mean, one step; nothing where no answer was usable.

        Raises:
            InputError: nothing was asked in this round.
            TrainingDiverged: all answers are not finite, twice in a row.
            TaskEdgeError: no usable answer for too long.
        """
        run, came = self._begun, {reply.metadata.src_node_id: reply for reply in replies}
        if run is None or not self._asked:
            raise InputError(f"answers of round {server_round}, in which nothing was asked: configure_train first")
        returned = [self._returned(run, node, came.get(node), server_round) for node in self._asked]
        for node, one in zip(self._asked, returned, strict=True):
            self._book(run, node, one, server_round)
        self._asked = {}
        state, accepted = run.state, [one.accepted for one in returned if one.accepted is not None]
        step = state.apply(accepted, server_round) if accepted else Step()
        state.round = server_round
        for words in state.revival.ended(server_round, step.gains):
            self._log("revival", round=server_round, decided=words)
        self._hope.after(server_round, returned)
        loss = mean_loss(accepted)
        if loss is None:
            return None, None
        facts = {"loss": loss, "norm": step.norm, "accepted": len(accepted), "tokens": sum(a.tokens for a in accepted)}
        self._log("round", round=server_round, version=state.version, **facts)
        return self.arrays(), MetricRecord(dict(facts))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Nothing: a run is measured at the server (``start``'s ``evaluate_fn``) or with ``taskedge eval``."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[FlowerMessage]) -> MetricRecord | None:
        """See :meth:`configure_evaluate`."""
        return None

    # what a server app calls

    def arrays(self) -> ArrayRecord:
        """The trained values by name; before the first round what trains whole, as it begins."""
        if self._begun is None:
            parameters = dict(self._model.named_parameters())
            values = {name: parameters[name].detach().cpu() for name in self._beginning.whole}
        else:
            values = self._begun.state.values
        return ArrayRecord({name: Array(value.numpy()) for name, value in values.items()})

    def delta(self) -> Delta:
        """The support with the values as they are now; the model holds them afterwards.

        Raises:
            InputError: the run has not begun.
        """
        if self._begun is None:
            raise InputError("the run has no support yet: start it first")
        self._begun.state.write_into(self._model)
        return extract(self._model)

    # one round

    def _ready(self, grid: Grid) -> _Begun:
        """Enough nodes, with the support installed on all that are there."""
        run = self._begun
        self._nodes.meet(grid, self._settings.devices if run is None else 1)
        if run is None:
            parts = self._nodes.statistics(grid)
            support = self._beginning.choose(parts)
            self._log("support", entries=support.entries, share=support.share, devices=len(parts))
            state, planner = self._beginning.begin(support)
            self._begun = run = _Begun(state, planner, self._beginning.install_message(self._run, support, state))
        self._nodes.bring(grid, run.install)
        return run

    def _task(self, run: _Begun, node: int, number: int) -> FlowerMessage:
        (share, plan), holds, seconds = self._asked[node], self._nodes[node].holds or 0, self._settings.first_deadline
        rows, stated = plan.accumulate[share.device], run.planner.stated(plan, share)
        task = task_message(self._run, holds, share, run.state, number, rows, seconds, stated)
        return FlowerMessage(to_content(task), node, MessageType.TRAIN, ttl=seconds, group_id=str(number))

    def _returned(self, run: _Begun, node: int, reply: FlowerMessage | None, number: int) -> Returned:
        """What became of a task; nothing of the run is changed."""
        if reply is None:
            return Returned("late", "no answer in time")
        if reply.has_error():
            return Returned("gone", str(reply.error.reason)[:300])
        share, plan = self._asked[node]
        try:
            answer = from_content(reply.content)
            if answer.kind in ("expired", "unready"):
                return Returned("late" if answer.kind == "expired" else "unready", answer.kind)
            rows, most = plan.accumulate[share.device], self._beginning.most_tokens
            accepted = judged(answer, self._run, share, run.state, number, accumulate=rows, most_tokens=most)
        except MessageError as error:
            return Returned("refused", f"no message: {error}")
        except Refused as reason:
            return Returned("refused", str(reason))
        return Returned("accepted", "", accepted, run.state.norms_of(accepted), accepted.seconds)

    def _book(self, run: _Begun, node: int, one: Returned, number: int) -> None:
        """Takes note of what became of a task."""
        (share, plan), answer, member = self._asked[node], one.accepted, self._nodes[node]
        if answer is not None:
            member.holds = run.state.version
            run.state.norms.add(one.norms)
            run.planner.observe(plan, share, answer.seconds, answer.seconds)
        elif one.result == "refused":
            self._nodes.refuse(node, one.why)
        else:
            if one.result == "late":
                run.planner.pace.late(member.name)
            self._nodes.unsure(node)
        facts: dict[str, Any] = {"tokens": answer.tokens, "loss": answer.loss} if answer else {"why": one.why}
        blocks = list(share.blocks)
        self._log("task", round=number, device=member.name, blocks=blocks, result=one.result, **facts)

    def _log(self, event: str, **facts: Any) -> None:
        self._on_event({"event": event, **facts})
