"""A device answers every message, and outlives those that fail."""

import asyncio
import time

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.device.suspend_clock import SuspendAwareClock
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import encode_support
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink


def install(run="r"):
    model = tiny_fleet.model()
    header, tensors = encode_support(te.select(model, rule="magnitude", per_neuron=1))
    head = {f"head/{name}": p.detach() for name, p in model.named_parameters() if name.startswith("classifier")}
    return Message("install", {"run": run, "step": "plain", "sizes": None, "support": header}, {**tensors, **head})


def task(since=0, version=0, run="r", expires=60.0, tensors=None, **changes):
    round_task, recipe = tiny_fleet.round_task(**{"blocks": (0, 1), "head_lr": 0.1, **changes})
    header = {"run": run, "round": 1, "version": version, "since": since, "expires_in": expires, "upload": "float32"}
    return Message("task", {**header, "job": round_task.header(recipe)}, tensors or {})


def answers_to(*messages, training=None, **options):
    """A device's answers to messages, and its training."""
    training = training or tiny_fleet.training()
    device = Device(None, training, **options)

    async def answer():
        return [await device.answer(Message.unpack(message.pack())) for message in messages]

    return [Message.unpack(message.pack()) for message in asyncio.run(answer())], training


def slow_training(seconds):
    """A training whose every batch takes ``seconds`` more."""

    def slow_collate(rows):
        time.sleep(seconds)
        return tiny_fleet.collate(rows)

    return LocalTraining(tiny_fleet.model(seed=100), tiny_fleet.rows(), slow_collate, min_rows=1)


def test_hello_describes_the_device_and_holds_none_of_its_data():
    (hello,), _ = answers_to(Message("hello", {}), labels=["no", "yes"], memory_bytes=1e9)
    stated = {"protocol", "base", "labels", "rows", "memory_bytes", "profile", "run", "version", "support", "min_rows"}
    assert hello.header.keys() == stated
    assert (hello.header["rows"], hello.header["labels"], hello.header["version"]) == (20, ["no", "yes"], None)
    assert not hello.tensors


def test_a_task_is_answered_with_the_gradients_of_its_blocks():
    (installed, answer), training = answers_to(install(), task())
    assert installed.kind == "installed"
    assert answer.kind == "gradients"
    assert {key: answer.header[key] for key in ("run", "round", "version")} == {"run": "r", "round": 1, "version": 0}
    assert sorted(answer.tensors) == sorted(training.blocks.names_in([0, 1]))
    assert answer.header["tokens"] > 0 < answer.header["loss"]
    (_, answer), _ = answers_to(install(), task(local_steps=2))
    assert answer.kind == "values"


def test_values_are_taken_over_before_training():
    name = "bert.encoder.layer.3.output.dense.entries.offsets"
    (_, before, after), training = answers_to(install(), task(), task(version=4, tensors={name: torch.ones(16)}))
    assert before.header["loss"] != after.header["loss"]
    parameter = dict(training.model.named_parameters())[name]
    assert parameter.tolist() == [1.0] * 16


def test_a_task_for_another_version_is_answered_with_unready():
    (nothing, _, other, gap, old), _ = answers_to(
        task(), install(), task(run="another"), task(since=3, version=4), task(version=0)
    )
    assert nothing.header["holds"] == ["", None]
    assert [answer.kind for answer in (nothing, other, gap, old)] == ["unready", "unready", "unready", "gradients"]
    assert gap.header["holds"] == ["r", 0]
    (_, _, late), _ = answers_to(install(), task(version=5), task(version=3))
    assert late.kind == "unready"  # an old task must not take values back


def test_an_expired_task_is_not_trained():
    trained = []

    class Recorded(LocalTraining):
        def train(self, *args, **kwargs):
            trained.append(1)
            return super().train(*args, **kwargs)

    times = [time.monotonic() - 30]
    clock = SuspendAwareClock(lambda: times[-1])
    training = Recorded(tiny_fleet.model(seed=100), tiny_fleet.rows(), tiny_fleet.collate, min_rows=1)
    device = Device(None, training, clock=clock)

    async def suspended():
        await device.answer(install())
        times.append(time.monotonic())  # the process did not run for half a minute
        late = await device.answer(task(expires=10.0))
        fits = await device.answer(task(expires=60.0))
        return late, fits

    late, fits = asyncio.run(suspended())
    assert (late.kind, fits.kind) == ("expired", "gradients")
    assert late.header == {"run": "r", "round": 1, "version": 0}
    assert len(trained) == 1


def test_a_result_that_is_late_is_not_sent():
    (_, answer), _ = answers_to(install(), task(expires=0.1), training=slow_training(0.2))
    assert answer.kind == "expired"
    assert not answer.tensors


BROKEN = {
    "unknown kind": Message("dance"),
    "KeyError": Message("task"),
    "nothing to train in blocks": task(blocks=(9,)),
    "does not train": task(version=1, tensors={"bert.pooler.dense.bias": torch.zeros(16)}),
    "without a sound support": Message("install", {"support": {}, "run": "r", "step": "plain", "sizes": None}),
    "do not make up": Message("install", {**install().header, "sizes": [1]}, install().tensors),
    "unexpected keyword": Message("task", {**task().header, "job": {**task().header["job"], "order": "all"}}),
}


@pytest.mark.parametrize("why", sorted(BROKEN))
def test_a_message_that_fails_is_answered_with_the_reason(why):
    (_, error, hello), _ = answers_to(install(), BROKEN[why], Message("hello"))
    assert error.kind == "error"
    assert why in error.header["why"]
    assert hello.kind == "hello"


def test_a_step_on_fewer_rows_than_the_owner_allows_is_refused_with_the_numbers():
    """With one row a step, a coordinator can tell the row and its label."""
    training = tiny_fleet.training()
    training.min_rows = 8
    statistics = {"needs": ["inputs"], "batch_size": 4, "seed": 0}
    asked = [install(), task(), task(batch_size=8), task(accumulate=2)]
    asked += [Message("statistics", {**statistics, "batches": batches}) for batches in (1, 2)]
    answers, _ = answers_to(*asked, training=training)
    assert [a.kind for a in answers] == ["installed", "error", "gradients", "gradients", "error", "statistics"]
    assert "a step over 4 rows is refused" in answers[1].header["why"]
    assert "statistics over 4 rows is refused: this device's owner allows no fewer than 8" in answers[4].header["why"]
    assert not answers[1].tensors
    assert not answers[4].tensors


@pytest.mark.slow
def test_a_training_that_hangs_is_reported():
    hung = []
    (_, answer), _ = answers_to(
        install(), task(expires=0.5), training=slow_training(1.5), on_hung=lambda: hung.append(1), patience=1
    )
    assert answer.kind == "expired"
    assert hung == [1]


def test_a_device_leaves_when_the_run_is_done():
    async def run():
        link, training = MemoryCoordinatorLink(), tiny_fleet.training()
        serving = asyncio.create_task(Device(link.device("d"), training).serve())
        await link.request("d", install(), 30)
        values = {"classifier.bias": torch.ones(3)}
        bye = await link.request("d", Message("done", {"run": "r", "since": 0, "version": 9}, values), 30)
        await asyncio.wait_for(serving, 30)
        return bye, training

    bye, training = asyncio.run(run())
    assert (bye.kind, bye.header["version"]) == ("bye", 9)
    assert te.extract(training.model).full_parameters["classifier.bias"].tolist() == [1.0] * 3


def test_another_process_continues_from_the_kept_values():
    change = {"classifier.bias": torch.full((3,), 0.25)}

    async def run():
        first, second = Device(None, tiny_fleet.training()), Device(None, tiny_fleet.training())
        assert first.values_message() is None
        await first.answer(install())
        await first.answer(task(version=1, tensors=change))
        await second.restore(install(), Message.unpack(first.values_message().pack()))
        assert second.run_version == first.run_version == ("r", 1)
        return await first.answer(task(since=1, version=1)), await second.answer(task(since=1, version=1))

    one, other = asyncio.run(run())
    assert one.header["loss"] == other.header["loss"]
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
