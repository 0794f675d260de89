"""What a device answers, and that it outlives whatever it is sent."""

import asyncio
import time

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import Job
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import support_facts
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

JOB = Job(
    (0, 1), 1, 5, batch_size=4, accumulate=1, local_steps=1, optimiser="sgd", lr=0.1, head_lr=0.1, weight_decay=0.0
)


def install(run="r"):
    model = tiny_fleet.model()
    facts, tensors = support_facts(te.select(model, rule="magnitude", per_neuron=1))
    head = {f"head/{name}": p.detach() for name, p in model.named_parameters() if name.startswith("classifier")}
    return Message("install", {"run": run, "step": "plain", "sizes": None, "support": facts}, {**tensors, **head})


def task(since=0, version=0, run="r", expires=60.0, tensors=None, **job):
    facts = {"run": run, "round": 1, "version": version, "since": since, "expires_in": expires, "upload": "float32"}
    return Message("task", {**facts, "job": {**JOB.facts(), **job}}, tensors or {})


def told(*messages, **about):
    """A device's answers to messages, and the device."""
    device = Device(MemoryCoordinatorLink().device("d"), tiny_fleet.training(), **about)

    async def ask():
        return [await device.answer(Message.unpack(message.pack())) for message in messages]

    return [Message.unpack(answer.pack()) for answer in asyncio.run(ask())], device


def test_it_says_who_it_is_and_nothing_of_its_data():
    (hello,), _ = told(Message("hello", {}), labels=["no", "yes"], memory_bytes=1e9)
    assert hello.facts.keys() == {"protocol", "base", "labels", "rows", "memory_bytes", "profile", "run", "version"}
    assert (hello.facts["rows"], hello.facts["labels"], hello.facts["version"]) == (20, ["no", "yes"], None)
    assert not hello.tensors


def test_a_task_is_answered_with_the_gradients_of_its_blocks():
    (installed, answer), device = told(install(), task())
    assert installed.kind == "installed"
    assert answer.kind == "gradients"
    assert {key: answer.facts[key] for key in ("run", "round", "version")} == {"run": "r", "round": 1, "version": 0}
    assert sorted(answer.tensors) == sorted(device._training.blocks.of([0, 1]))
    assert answer.facts["tokens"] > 0 < answer.facts["loss"]
    (_, answer), _ = told(install(), task(local_steps=2))
    assert answer.kind == "values"


def test_values_are_taken_up_before_training():
    name = "bert.encoder.layer.3.output.dense.entries.offsets"
    (_, before, after), device = told(install(), task(), task(version=4, tensors={name: torch.ones(16)}))
    assert before.facts["loss"] != after.facts["loss"]
    parameter = dict(device._training.model.named_parameters())[name]
    assert parameter.tolist() == [1.0] * 16


def test_a_version_that_it_does_not_hold_makes_it_unready():
    (nothing, _, other, gap, old), _ = told(
        task(), install(), task(run="another"), task(since=3, version=4), task(version=0)
    )
    assert nothing.facts["holds"] == ["", None]
    assert [answer.kind for answer in (nothing, other, gap, old)] == ["unready", "unready", "unready", "gradients"]
    assert gap.facts["holds"] == ["r", 0]
    (_, _, late), _ = told(install(), task(version=5), task(version=3))
    assert late.kind == "unready"  # an old task must not take values back


def test_an_expired_task_is_not_trained():
    device = Device(MemoryCoordinatorLink().device("d"), tiny_fleet.training())
    calls = []
    train = device._training.train
    device._training.train = lambda *given: calls.append(1) or train(*given)

    async def frozen():
        await device.answer(install())
        device._arrival._last = time.monotonic() - 30  # the process did not run for half a minute
        late = await device.answer(task(expires=10.0))
        fits = await device.answer(task(expires=60.0))
        return late, fits

    late, fits = asyncio.run(frozen())
    assert (late.kind, fits.kind) == ("expired", "gradients")
    assert late.facts == {"run": "r", "round": 1, "version": 0}
    assert len(calls) == 1


def test_what_it_finishes_too_late_is_not_sent():
    device = Device(MemoryCoordinatorLink().device("d"), tiny_fleet.training())

    async def slow():
        await device.answer(install())
        collate = device._training.collate
        device._training.collate = lambda rows: time.sleep(0.2) or collate(rows)
        return await device.answer(task(expires=0.1))

    answer = asyncio.run(slow())
    assert answer.kind == "expired"
    assert not answer.tensors


BROKEN = {
    "unknown kind": Message("dance"),
    "KeyError": Message("task"),
    "nothing to train in blocks": task(blocks=[9]),
    "does not train": task(version=1, tensors={"bert.pooler.dense.bias": torch.zeros(16)}),
    "without a sound support": Message("install", {"support": {}, "run": "r", "step": "plain", "sizes": None}),
    "do not make up": Message("install", {**install().facts, "sizes": [1]}, install().tensors),
    "unexpected keyword": Message("task", {**task().facts, "job": {**JOB.facts(), "order": "all"}}),
}


@pytest.mark.parametrize("why", sorted(BROKEN))
def test_what_it_cannot_do_is_answered_and_outlived(why):
    (_, error, hello), _ = told(install(), BROKEN[why], Message("hello"))
    assert error.kind == "error"
    assert why in error.facts["why"]
    assert hello.kind == "hello"


def test_a_training_that_hangs_is_reported():
    hung = []
    device = Device(
        MemoryCoordinatorLink().device("d"), tiny_fleet.training(), on_hung=lambda: hung.append(1), patience=1
    )

    async def hang():
        await device.answer(install())
        collate = device._training.collate
        device._training.collate = lambda rows: time.sleep(1.5) or collate(rows)
        return await device.answer(task(expires=0.5))

    assert asyncio.run(hang()).kind == "expired"
    assert hung == [1]


def test_it_leaves_when_the_run_is_done():
    async def whole():
        hub = MemoryCoordinatorLink()
        device = Device(hub.device("d"), tiny_fleet.training())
        serving = asyncio.create_task(device.serve())
        await hub.ask("d", install(), 30)
        name = "classifier.bias"
        bye = await hub.ask("d", Message("done", {"run": "r", "since": 0, "version": 9}, {name: torch.ones(3)}), 30)
        await asyncio.wait_for(serving, 30)
        return bye, device

    bye, device = asyncio.run(whole())
    assert (bye.kind, bye.facts["version"]) == ("bye", 9)
    assert te.extract(device._training.model).whole["classifier.bias"].tolist() == [1.0] * 3
