"""The cloud with scripted devices: many at once, lost ones, hostile ones; and nothing of one reaches another."""

from __future__ import annotations

import asyncio
import gc
import weakref

import cut_runs
import pytest
import torch
from scripted_devices import Scripted, a_plan, serve

from taskedge.cooperation.cut import cloud as cloud_module
from taskedge.cooperation.cut.base_parts import BaseParts
from taskedge.cooperation.cut.cloud import Cloud, CloudLimits
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink


@pytest.fixture(scope="module")
def base():
    return cut_runs.cloud_base()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "config.json").write_text("{}")
    return BaseParts(folder)


def run(base, parts, devices, **limits):
    return asyncio.run(serve(base, parts, devices, CloudLimits(**limits) if limits else None))


def test_a_device_gets_columns_states_and_gradients(base, parts):
    device = Scripted("a", a_plan(base))
    cloud = run(base, parts, [device])
    kinds = [message.kind for message in device.received]
    one_pass = ["columns", "columns", "states", "gradients", "gradients"]
    assert kinds == ["next", "next", *one_pass, "next", *one_pass, "next"]
    assert [m.header["needed"] for m in device.received if m.kind == "columns"] == [False, True, False, True]
    assert not cloud.sessions
    assert device.matrices[:5] == device.matrices[5:]  # the same pass twice
    states = device.received[4].tensors["matrix"]
    assert len(states) == 4 * 8 * 16


def test_many_devices_at_once_get_what_each_gets_alone(base, parts):
    alone = [Scripted(f"d{seed}", a_plan(base), seed=seed) for seed in range(3)]
    for device in alone:
        run(base, parts, [device])
    together = [Scripted(f"d{seed}", a_plan(base), seed=seed) for seed in range(3)]
    cloud = run(base, parts, together)
    assert [device.matrices for device in together] == [device.matrices for device in alone]
    assert len({device.matrices[0] for device in together}) == 3
    assert not cloud.refusals


@pytest.fixture(scope="module")
def dropping():
    """A base with dropout."""
    return cut_runs.cloud_base(dropout=0.1)


def test_dropout_of_a_device_that_trains_does_not_depend_on_one_that_measures(dropping, parts):
    """Both use the same blocks by turns, and only one is in training mode."""

    def measuring(request: Message, answer: Message) -> Message:
        if answer.kind == "pass":
            return Message("pass", {**answer.header, "trains": False}, answer.tensors)
        return Message("seen", answer.header) if request.kind == "states" else answer

    def devices():
        return [
            Scripted("trains", a_plan(dropping)),
            Scripted("measures", a_plan(dropping), change=measuring, passes=6),
        ]

    alone, together = devices(), devices()
    for device in alone:
        run(dropping, parts, [device])
    cloud = run(dropping, parts, together)
    assert [device.matrices for device in together] == [device.matrices for device in alone]
    assert alone[0].matrices[:5] != alone[0].matrices[5:]  # other passes, other dropout
    assert not cloud.refusals


@pytest.mark.parametrize("place", range(4, 9))
def test_dropout_of_a_pass_is_the_same_after_the_link_was_cut_in_it(dropping, parts, place):
    """The thread of the lost pass ends while the new one computes, and draws no number of it."""
    alone = Scripted("a", a_plan(dropping))
    run(dropping, parts, [alone])
    device = Scripted("a", a_plan(dropping))

    async def cut() -> None:
        link = MemoryCoordinatorLink()
        cloud = Cloud(link, dropping, parts, CloudLimits())
        tasks = [asyncio.create_task(cloud.serve())]
        count = iter(range(1, 1000))

        async def handle(message: Message) -> Message:
            if next(count) == place:
                tasks.append(asyncio.create_task(link.device("a").serve(handle)))
                await asyncio.sleep(0.02)
            return await device.handle(message)

        tasks.append(asyncio.create_task(link.device("a").serve(handle)))
        async with asyncio.timeout(20):
            while cloud.sessions or len({message.header["session"] for message in device.received}) < 2:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cut())
    assert len({message.header["session"] for message in device.received}) == 2
    device.received = [message for message in device.received if message.header["session"] == device.session]
    assert device.matrices == alone.matrices


def test_without_an_active_module_only_states_cross(base, parts):
    def idle(request: Message, answer: Message) -> Message:
        if answer.kind == "pass":
            return Message("pass", {**answer.header, "active": "000"}, answer.tensors)
        return Message("seen", answer.header) if request.kind == "states" else answer

    device = Scripted("a", a_plan(base), passes=1, change=idle)
    cloud = run(base, parts, [device])
    assert [message.kind for message in device.received] == ["next", "next", "states", "next"]
    assert not cloud.refusals


def matrix(size):
    return lambda request, answer: Message(answer.kind, answer.header, {"matrix": torch.zeros(size, dtype=torch.uint8)})


def header(**changes):
    return lambda request, answer: Message(answer.kind, {**answer.header, **changes}, answer.tensors)


def tensors(**changes):
    return lambda request, answer: Message(answer.kind, answer.header, {**answer.tensors, **changes})


NAN = torch.full((8 * 4,), float("nan")).view(torch.uint8)
ATTACKS = {
    "shape": ("columns", matrix(8), "8]"),
    "nan": ("columns", lambda r, a: Message(a.kind, a.header, {"matrix": NAN}), "not finite"),
    "oversize": ("columns", matrix(300_000), "oversize"),
    "no matrix": ("columns", lambda r, a: Message(a.kind, a.header), "with the tensors"),
    "another pass": ("columns", header(**{"pass": 7}), "the pass 7, not 1"),
    "another session": ("columns", header(session="0123"), "the session '0123'"),
    "another kind": ("states", lambda r, a: Message("products", a.header, a.tensors), "kind 'products'"),
    "gradient shape": ("states", matrix(12), "12]"),
    "input gradient": ("gradients", matrix(12), ""),
    "plan of another base": ("next", header(modules=[["x", "x", 1, 1]]), "none here"),
    "tokens": ("next 1", header(shape=[1 << 20, 4]), "are the most"),
    "length": ("next 1", header(shape=[1, 8, 1]), "a batch of"),
    "active": ("next 1", header(active="11111"), "active modules"),
    "seed": ("next 1", header(seed=-1), "seed is -1"),
    "trains": ("next 1", header(trains="yes"), "'trains'"),
    "coding": ("next 1", header(coding="fp1"), "coding 'fp1'"),
    "mask": ("next 1", tensors(mask=torch.ones(2, 3, dtype=torch.bool)), "mask"),
    "token ids": ("next 1", tensors(input_ids=torch.ones(2, 4, dtype=torch.int64)), "input_ids"),
    "parked": ("next 1", tensors(**{"parked/encoder.layer.1.output.dense/block": torch.zeros(2, 3)}), "no idle"),
    "unknown": ("next 1", lambda r, a: Message("steal", a.header), "kind 'steal'"),
    "protocol": ("hello", header(protocol=2), "the protocol 2, not 1"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_breaks_the_protocol_is_refused_by_name_and_touches_nobody_else(base, parts, name):
    kind, change, words = ATTACKS[name]
    wanted, _, place = kind.partition(" ")
    seen = []

    def attack(request: Message, answer: Message) -> Message:
        if request.kind != wanted:
            return answer
        seen.append(request.kind)
        return change(request, answer) if len(seen) == 1 + int(place or 0) else answer

    alone = Scripted("honest", a_plan(base), seed=5)
    run(base, parts, [alone])
    before = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    hostile, honest = Scripted("hostile", a_plan(base), change=attack), Scripted("honest", a_plan(base), seed=5)
    cloud = run(base, parts, [hostile, honest])
    assert cloud.refusals == {"hostile": 1}
    assert words in hostile.refused or name == "oversize"
    assert any("hostile: refused" in line and words in line for line in cloud.lines)
    assert honest.matrices == alone.matrices
    assert not honest.refused
    assert not cloud.sessions
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.model.named_parameters())


@pytest.mark.parametrize("kind", ["columns", "states", "gradients"])
def test_a_device_lost_in_mid_step_leaves_nothing(base, parts, kind, monkeypatch):
    """Its pass is freed with all that it holds, whether it leaves or only stops to answer."""
    passes = []

    class Watched(cloud_module.Pass):
        def __post_init__(self):
            super().__post_init__()
            passes.append(weakref.ref(self))

    monkeypatch.setattr(cloud_module, "Pass", Watched)

    class Lost(Scripted):
        async def handle(self, message):
            if message.kind == kind and len(self.received) < 8:
                self.received.append(message)
                await asyncio.sleep(0.3)  # longer than the cloud waits
            return await super().handle(message)

    lost = Lost("lost", a_plan(base), passes=1)
    cloud = run(base, parts, [lost], seconds=0.1)
    gc.collect()
    assert any("did not answer" in line for line in cloud.lines)
    assert not cloud.refusals
    assert passes
    assert all(reference() is None for reference in passes)


def test_more_devices_than_the_cloud_takes_are_told(base, parts):
    devices = [Scripted(f"d{number}", a_plan(base)) for number in range(3)]
    asyncio.run(serve(base, parts, devices, CloudLimits(devices=2)))
    assert sorted(bool(device.refused) for device in devices) == [False, False, True]
    assert any("the most" in device.refused for device in devices)
