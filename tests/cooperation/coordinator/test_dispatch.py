"""One task: what the message says, and the outcome of every answer."""

import asyncio

import pytest
import tiny_fleet
import torch
from lying_devices import LIES, UNREADABLE, Garbage, altered

import taskedge as te
from taskedge.cooperation.coordinator.device_sessions import DeviceSession
from taskedge.cooperation.coordinator.dispatch import answer_outcome, complete_task, dispatch_task, task_message
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.round_task import RoundTask, read_round_task
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

NOMINAL = {"compute_seconds": 1.0, "downlink_bits_per_second": 1e6, "uplink_bits_per_second": 2e6}
MAX_TOKENS = 24


class Exchange:
    """A coordinator's state in its first round, and a device on which the run is installed."""

    def __init__(self, freezing=None, **settings):
        setup = RunSetup(tiny_fleet.model(), tiny_fleet.settings(**settings), freezing=freezing)
        support = te.select(setup.model, rule="magnitude", per_neuron=1)
        self.state, _ = setup.install_support(support)
        self.state.begin_round(1)
        self.device = Device(None, tiny_fleet.training())
        assert self.ask(setup.install_message("r", support, self.state)).kind == "installed"
        self.task = complete_task(RoundTask("d0", (0, 1, 2)), self.state, 2)

    def ask(self, message):
        return asyncio.run(self.device.answer(message))

    def message(self, version=0):
        return task_message("r", version, self.task, self.state, 1, 30.0, NOMINAL)

    def outcome(self, answer):
        return answer_outcome(answer, "r", self.task, self.state, 1, MAX_TOKENS)


@pytest.fixture(scope="module")
def exchange():
    return Exchange()


def test_a_completed_task_says_what_its_device_needs():
    exchange = Exchange(freezing=FreezingConfig(0.25, stage=1, window=1, every=9))
    state = exchange.state
    answer = exchange.outcome(exchange.ask(exchange.message())).answer
    state.end_round([answer], 1)
    state.begin_round(2)
    task = complete_task(RoundTask("d0", (0, 1, 2, 3, 4)), state, 3)
    names = state.blocks.names_in(task.blocks)
    active = set(state.training.names_in(task.blocks))
    assert {names[i] for i in task.idle} == set(names) - active != set()
    assert task.accumulate == 3
    assert task.seed != complete_task(RoundTask("d1", (0, 1)), state, 3).seed


def test_the_message_has_the_values_that_changed_since_the_devices_version():
    exchange = Exchange(lr=0.1, warmup=0.0, rounds=4)
    first = exchange.message()
    assert first.tensors == {}
    assert {first.header[name] for name in ("version", "since")} == {0}
    assert (first.header["expires_in"], first.header["upload"]) == (30.0, "float32")
    assert {name: first.header[name] for name in NOMINAL} == NOMINAL
    task, recipe = read_round_task(first.header["job"])
    assert (task.blocks, task.accumulate, recipe.lr, recipe.round) == ((0, 1, 2), 2, 0.1, 1)
    exchange.state.end_round([exchange.outcome(exchange.ask(first)).answer], 1)
    assert exchange.message(version=0).tensors.keys() == set(exchange.state.training.names_in((0, 1, 2)))
    assert exchange.message(version=1).tensors == {}


@pytest.mark.parametrize("upload", ["float32", "float8"])
def test_an_honest_answer_is_accepted_and_dequantized(upload):
    exchange = Exchange(upload=upload)
    outcome = exchange.outcome(exchange.ask(exchange.message()))
    assert (outcome.result, outcome.reason) == ("accepted", "")
    tensors = outcome.answer.tensors
    assert tensors.keys() == set(exchange.state.training.names_in((0, 1, 2)))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert outcome.answer.norms == exchange.state.norms_of(outcome.answer)
    assert outcome.answer.norms.keys() == {0, 1, 2}


@pytest.mark.parametrize("why", sorted(LIES))
def test_a_lie_is_refused_with_its_reason(exchange, why):
    honest = exchange.ask(exchange.message())
    outcome = exchange.outcome(LIES[why](honest))
    assert (outcome.result, outcome.answer) == ("refused", None)
    assert why in outcome.reason


def test_tokens_are_bounded_by_the_rows_of_the_task(exchange):
    honest = exchange.ask(exchange.message())
    most = 4 * 2 * MAX_TOKENS  # batch size, batches, tokens in a row
    assert exchange.outcome(altered(honest, tokens=most)).result == "accepted"
    assert exchange.outcome(altered(honest, tokens=most + 1)).result == "refused"


def test_a_finite_answer_with_an_infinite_product_is_refused():
    exchange = Exchange(upload="float8")
    honest = exchange.ask(exchange.message())
    scales = torch.full_like(honest.tensors["/scales"], 3e38)
    outcome = exchange.outcome(altered(honest, {**honest.tensors, "/scales": scales}))
    assert outcome.result == "refused"
    assert outcome.reason.startswith("not finite")


def test_an_accepted_answer_says_whose_it_is_and_what_it_is_measured_by():
    exchange = Exchange()
    answer = exchange.outcome(exchange.ask(exchange.message())).answer
    assert (answer.device, answer.rows) == (exchange.task.device, 4 * 2)  # batch size, batches
    assert answer.norms == exchange.state.norms_of(answer)


@pytest.mark.parametrize(("kind", "result"), [("expired", "late"), ("unready", "unready")])
def test_a_device_that_did_not_train_is_no_liar(exchange, kind, result):
    outcome = exchange.outcome(Message(kind, {}))
    assert (outcome.result, outcome.reason) == (result, kind)


@pytest.mark.parametrize(
    ("reply", "result", "reason"),
    [
        ("honest", "accepted", ""),
        ("none", "late", "no answer in time"),
        ("leave", "gone", ""),
        ("garbage", "refused", UNREADABLE),
    ],
)
def test_the_outcome_of_a_dispatch(reply, result, reason):
    """Over a link: seconds, bytes and session of the task, whatever comes of it."""
    exchange = Exchange()

    async def dispatched():
        hub = MemoryCoordinatorLink()
        end = hub.device("d0")

        async def answer(message):
            if reply == "none":
                await asyncio.Event().wait()
            if reply == "leave":
                await end.close()
            return Garbage() if reply == "garbage" else await exchange.device.answer(message)

        serving = asyncio.create_task(end.serve(answer))
        session = DeviceSession("d0", session_id=3, version=0)
        deadline = 0.1 if reply == "none" else 30.0
        try:
            return await dispatch_task(
                hub,
                "r",
                session,
                exchange.task,
                exchange.state,
                1,
                deadline=deadline,
                max_tokens=MAX_TOKENS,
                nominal=NOMINAL,
            )
        finally:
            serving.cancel()

    outcome = asyncio.run(dispatched())
    assert outcome.result == result
    assert reason in outcome.reason
    assert outcome.session_id == 3
    assert outcome.seconds > 0
    assert outcome.bytes_down > 0
    assert (outcome.bytes_up > 0) == (reply in ("honest", "garbage"))
