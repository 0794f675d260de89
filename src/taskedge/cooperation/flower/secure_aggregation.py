"""Secure aggregation under Flower: the server sees the sum of the devices' answers, and none of them.

    strategy = SecureStrategy(model, CooperationConfig(mode="fedavg", upload="float32", rounds=100, devices=4))
    app = secure_client_app(lambda context: NodeSetup(LocalTraining(model, rows, collate), labels))

The protocol is Flower's SecAgg+ (arXiv 2108.05861 and arXiv 1611.04482): its workflow on the server and its mod on the
devices. Each device masks its answer with numbers that cancel in the sum. Every device counts alike, and losses are
sent in the clear, as are the statistics before the first round. Since no single answer is seen, none can be checked:
there is no refusal, no scaling to the median, no robust rule. A device can ruin the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common.typing import Code, FitIns, FitRes, Parameters, Status
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.dispatch import TaskOutcome
from taskedge.cooperation.flower.client import NodeSetup, client_app
from taskedge.cooperation.flower.records import RECORD, STYPE, from_content, packed_record
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.protocol.bounds import MAX_LOSS, MAX_ROWS, bounded_count, bounded_number, short_text
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.validation import AcceptedAnswer, AnswerRefused, check_finite
from taskedge.errors import InputError, TaskEdgeError

LOSS, TOKENS = "loss", "tokens"
"""Metrics of a device that travel beside the masked answer."""


def secure_client_app(make: Callable[[Context], NodeSetup], *, warm: int = 1) -> ClientApp:
    """Return an app whose answers to tasks are masked. Arguments: see :func:`client_app`."""
    plain = client_app(make, warm=warm)
    app = ClientApp(mods=[secaggplus_mod])

    def train(flower_message: FlowerMessage, context: Context) -> FlowerMessage:
        (packed,) = compat.recorddict_to_fitins(flower_message.content, keep_input=True).parameters.tensors
        flower_message.content[RECORD] = packed_record(packed)
        answer = from_content(plain(flower_message, context).content)
        if answer.kind not in ("gradients", "values"):
            raise TaskEdgeError(f"no answer to the task: {answer.kind} {answer.header.get('why', '')}")
        arrays = [answer.tensors[name].float().numpy() for name in sorted(answer.tensors)]
        metrics = {LOSS: float(answer.header["loss"]), TOKENS: int(answer.header["tokens"])}
        result = FitRes(Status(Code.OK, ""), _parameters(arrays), 1, metrics)
        return FlowerMessage(compat.fitres_to_recorddict(result, keep_input=False), reply_to=flower_message)

    app.train()(train)
    app.query()(plain)
    return app


class SecureStrategy(TaskEdgeStrategy):
    """A strategy whose server learns the mean of the answers only.

    Args:
        model: See :class:`TaskEdgeStrategy`.
        config: The run's settings. All devices must answer for the same blocks, without rounding of their own.
        threshold: Share of the devices that must stay until the end of a round for it to count. Fewer than that cannot
            unmask an answer either.
        clipping_range: Largest magnitude of a sent number; larger ones are cut. Numbers are rounded to multiples of a
            2,097,152th of it.
        more: See :class:`TaskEdgeStrategy`.

    Raises:
        InputError: The settings cannot be used with secure aggregation.
    """

    def __init__(
        self,
        model: Any,
        config: CooperationConfig,
        *,
        threshold: float = 2 / 3,
        clipping_range: float = 8.0,
        **more: Any,
    ) -> None:
        wanted = {"mode": "fedavg", "upload": "float32", "aggregate": "mean"}
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise InputError(
                    f"secure aggregation with {name} {getattr(config, name)!r}: the server sees only the sum of the "
                    f"answers, so it needs {value!r}"
                )
        super().__init__(model, config, **more)
        self._workflow = SecAggPlusWorkflow(
            num_shares=1.0,
            reconstruction_threshold=threshold,
            max_weight=1.0,
            clipping_range=clipping_range,
            timeout=config.first_deadline,
        )
        self._round: _SecureRound | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Carry out the round by the protocol's four exchanges, and return no further messages."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._round = _SecureRound(messages)
        state = RecordDict()
        state[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: server_round})
        state[MAIN_PARAMS_RECORD] = ArrayRecord()
        context = LegacyContext(Context(0, 0, {}, state, {}), strategy=self._round)  # it has the methods that are used
        context.client_manager = self._round
        self._workflow(grid, context)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step by the mean of the answers; None if too few devices stayed until the end."""
        run, done = self._run, self._round
        if run is None or done is None or not self._tasks:
            raise InputError(f"answers of round {server_round}, in which nothing was asked: configure_train first")
        answer, why = self._mean(done)
        for node, task in self._tasks.items():
            session = self._nodes[node]
            if node in done.metrics and answer is not None:
                session.version = run.state.version
            elif node not in done.metrics:
                self._nodes.mark_unresponsive(node)
            result = "accepted" if node in done.metrics else "gone"
            self._log("task", round=server_round, device=session.name, blocks=list(task.blocks), result=result)
        self._tasks, self._round = {}, None
        run.state.end_round([answer] if answer else [], server_round)
        self._stopping_rule.check(server_round, [TaskOutcome("accepted" if answer else "refused", why, answer)])
        if answer is None:
            self._log("no sum", round=server_round, why=why)
            return None, None
        metrics = {"loss": answer.loss, "accepted": len(done.metrics), "tokens": answer.tokens}
        self._log("round", round=server_round, version=run.state.version, **metrics)
        return self.arrays(), MetricRecord(dict(metrics))

    def _mean(self, done: _SecureRound) -> tuple[AcceptedAnswer | None, str]:
        """Return the mean of a round as one answer, or why there is none."""
        assert self._run is not None
        if done.mean is None:
            return None, "too few devices stayed until the end of the round: their masks cannot be taken off"
        task = next(iter(self._tasks.values()))
        names = sorted(self._run.state.training.names_in(task.blocks))
        values = self._run.state.values
        if [array.shape for array in done.mean] != [values[name].shape for name in names]:
            return None, "a sum of other shapes than the task's"
        tensors = {name: torch.from_numpy(array.copy()).float() for name, array in zip(names, done.mean, strict=True)}
        try:
            check_finite(tensors)
        except AnswerRefused as error:
            return None, str(error)
        losses, tokens = self._measured(done)
        return AcceptedAnswer(tensors, tokens, sum(losses) / len(losses) if losses else 0.0, seconds=0.0), ""

    def _measured(self, done: _SecureRound) -> tuple[list[float], int]:
        """Return the losses and the tokens that devices state in the clear. What is no possible number is left out."""
        losses: list[float] = []
        total = 0
        for node, metrics in done.metrics.items():
            loss = bounded_number(metrics.get(LOSS), -MAX_LOSS, MAX_LOSS)
            tokens = bounded_count(metrics.get(TOKENS), 0, MAX_ROWS)
            if loss is None or tokens is None:
                stated = f"a loss of {short_text(metrics.get(LOSS))} over {short_text(metrics.get(TOKENS))} tokens"
                self._log("metrics", device=self._nodes[node].name, why=f"it states {stated}: neither counts")
            else:
                losses.append(loss)
                total += tokens
        return losses, total


class _SecureRound:
    """One round as the strategy and the client manager of Flower's workflow, of which it calls these methods.

    Attributes:
        mean: Arrays of the mean; None: there is none.
        metrics: Of each node whose answer is in the mean.
    """

    def __init__(self, messages: Iterable[FlowerMessage]) -> None:
        self._messages = {message.metadata.dst_node_id: message for message in messages}
        self.mean: list[Any] | None = None
        self.metrics: dict[int, dict[str, Any]] = {}

    def num_available(self) -> int:
        return len(self._messages)

    def configure_fit(self, *_: Any) -> list[tuple[Any, FitIns]]:
        made = []
        for node, message in self._messages.items():
            task: Message = from_content(message.content)
            made.append((SimpleNamespace(node_id=node), FitIns(Parameters([task.pack()], STYPE), {})))
        return made

    def aggregate_fit(self, _: int, results: list[tuple[Any, FitRes]], __: Any) -> tuple[Any, dict[str, Any]]:
        from flwr.common import parameters_to_ndarrays

        if results:
            self.mean = parameters_to_ndarrays(results[0][1].parameters)
            self.metrics = {proxy.node_id: dict(result.metrics) for proxy, result in results}
        return None, {}


def _parameters(arrays: list[Any]) -> Parameters:
    from flwr.common import ndarrays_to_parameters

    made: Parameters = ndarrays_to_parameters(arrays)
    return made
