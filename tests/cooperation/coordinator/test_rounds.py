"""Devices that lie, break, come late, leave and come back; a coordinator that is killed; a disk that is full."""

import asyncio
import errno
import os

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.protocol.message import MAGIC, Message
from taskedge.cooperation.transport.request_reply import LATE
from taskedge.errors import InputError, TaskEdgeError, TrainingDiverged


def devices(count, **about):
    return {f"d{place}": tiny_fleet.training(place, **about) for place in range(count)}


def replaced(answer, tensors=None, **facts):
    return Message(answer.kind, {**answer.facts, **facts}, answer.tensors if tensors is None else tensors)


def first(answer, value):
    name = min(answer.tensors)
    return {**answer.tensors, name: value(answer.tensors[name])}


LIES = {
    "not finite": lambda a: replaced(a, first(a, lambda t: t * torch.nan)),
    "not finite: the loss": lambda a: replaced(a, loss=None),
    "not assigned": lambda a: replaced(a, {**a.tensors, "bert.embeddings.word_embeddings.weight": torch.ones(2)}),
    "missing": lambda a: replaced(a, {name: t for name, t in a.tensors.items() if name != min(a.tensors)}),
    "wrong shape": lambda a: replaced(a, first(a, lambda t: t[:-1])),
    "wrong dtype": lambda a: replaced(a, first(a, lambda t: t.to(torch.bfloat16))),
    "stale version": lambda a: replaced(a, version=a.facts["version"] - 1),
    "stale round": lambda a: replaced(a, round=a.facts["round"] - 1),
    "stale run": lambda a: replaced(a, run="another"),
    "oversize": lambda a: replaced(a, first(a, lambda t: torch.zeros(10**6))),
    "wrong tokens": lambda a: replaced(a, tokens=10**12),
    "kind 'values'": lambda a: Message("values", a.facts, a.tensors),
    "no message": lambda a: Garbage(),
}


class Garbage(Message):
    def __init__(self):
        super().__init__("gradients")

    def pack(self):
        return MAGIC + b"\xff\xff\xff\xff and no facts"


def liar(lie, start=1):
    async def change(message, answer):
        found = await answer(message)
        return lie(found) if found.kind == "gradients" and found.facts["round"] >= start else found

    return change


@pytest.mark.parametrize("why", sorted(LIES))
def test_a_wrong_answer_is_refused_and_never_touches_the_model(tmp_path, why):
    """The run ends with the very values of one in which the liar trains nothing at all."""
    how = tiny_fleet.settings(rounds=4, mode="fedavg", devices=2, quarantine_after=2)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, devices(2), changes={"d1": liar(LIES[why])})
    refused = [e for e in events if e["event"] == "task" and e["result"] == "refused"]
    assert [(e["device"], e["round"], e["refused"]) for e in refused] == [("d1", 1, 1), ("d1", 2, 2)]
    assert all(why in e["why"] for e in refused)
    assert [(e["device"], e["refused"]) for e in events if e["event"] == "quarantined"] == [("d1", 2)]
    assert {e["device"] for e in events if e["event"] == "task" and e["round"] > 2} == {"d0"}

    async def silent(message, answer):
        return Message("error", {"why": "off"}) if message.kind == "task" else await answer(message)

    other, _, _ = tiny_fleet.run(tmp_path / "other", how, devices(2), changes={"d1": silent})
    assert all(torch.equal(head.state.values[name], other.state.values[name]) for name in head.state.values)


def test_an_absurd_norm_is_refused_once_norms_are_known(tmp_path):
    huge = liar(lambda a: replaced(a, {name: 1e6 * tensor for name, tensor in a.tensors.items()}), start=7)
    how = tiny_fleet.settings(rounds=8, mode="fedavg", devices=2, lr=0.001)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, devices(2), changes={"d1": huge})
    results = {e["round"]: e for e in events if e["event"] == "task" and e["device"] == "d1"}
    assert [results[number]["result"] for number in range(1, 9)] == ["accepted"] * 6 + ["refused"] * 2
    assert "absurd norm" in results[7]["why"]
    state = head.state
    assert max((value - state.start[name]).abs().max() for name, value in state.values.items()) < 1


def test_a_run_that_diverged_is_not_the_devices_fault(tmp_path):
    everyone = {f"d{place}": liar(LIES["not finite"], start=2) for place in range(2)}
    with pytest.raises(TrainingDiverged, match="lower learning rate"):
        tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=9, devices=2), devices(2), changes=everyone)


def test_a_run_without_usable_answers_ends_and_says_why(tmp_path):
    how = tiny_fleet.settings(rounds=20, quarantine_after=99)
    with pytest.raises(TaskEdgeError, match=r"5 rounds in a row without a usable answer .*wrong shape"):
        tiny_fleet.run(tmp_path / "run", how, devices(1), changes={"d0": liar(LIES["wrong shape"])})
    how = tiny_fleet.settings(rounds=20, wait_seconds=0.3)
    with pytest.raises(TaskEdgeError, match=r"no device has been ready for 0\.3 s"):
        tiny_fleet.run(tmp_path / "other", how, devices(1), changes={"d0": liar(LIES["wrong shape"])})


def values_after(head_of, kept):
    """Keeps the values after every round."""

    def on_event(event):
        if event["event"] == "round":
            kept[event["round"]] = {name: value.clone() for name, value in head_of().state.values.items()}

    return on_event


def test_a_late_answer_is_not_used_and_the_block_keeps_its_values(tmp_path):
    """d1 answers its third task after the deadline; then it is asked who it is, and has tasks again."""

    async def whole():
        over, events, kept, heads = asyncio.Event(), [], {}, []

        async def slow(message, answer):
            found = await answer(message)
            if message.kind == "task" and message.facts["round"] == 3:
                await over.wait()
            return found

        def on_event(event):
            events.append(event)
            values_after(lambda: heads[0], kept)(event)
            if event["event"] == "round" and event["round"] == 4:
                over.set()

        async with tiny_fleet.fleet(devices(2), {"d1": slow}) as made:
            how = tiny_fleet.settings(rounds=30, devices=2, blocks=2, least_deadline=3.0, deadline_factor=1.01)
            heads.append(tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event))
            await heads[0].run()
            return heads[0], events, kept, made.hub.traffic("d1")[1]

    head, events, kept, received = asyncio.run(whole())
    tasks = {(e["round"], e["device"]): e for e in events if e["event"] == "task"}
    late = tasks[3, "d1"]
    assert (late["result"], late["why"]) == ("late", "no answer in time")
    assert received.messages[LATE] == 1
    (block,) = [block for block in late["blocks"] if block]
    for name, value in kept[3].items():
        rested = head.state.blocks.block_of()[name] == block
        assert torch.equal(value, kept[2][name]) == rested, name
    assert any("left: d1" in e["why"] for e in events if e["event"] == "planned")
    assert tasks[4, "d0"]["blocks"] == [0, 1, 2]  # nobody's block any more: planned anew
    assert any(number > 4 and name == "d1" and e["result"] == "accepted" for (number, name), e in tasks.items())


def test_a_block_whose_device_is_gone_keeps_its_values_in_that_round(tmp_path):
    """Killed in a step: the round goes on with the others, and the block is another device's from then on."""

    async def whole():
        events, kept, heads, trainings = [], {}, [], devices(2)
        loop = asyncio.get_running_loop()

        def on_event(event):
            events.append(event)
            values_after(lambda: heads[0], kept)(event)

        async with tiny_fleet.fleet(trainings) as made:
            train = trainings["d1"].train

            def killed(job, check):
                if job.round == 2:
                    loop.call_soon_threadsafe(made.serving["d1"].cancel)
                return train(job, check)

            trainings["d1"].train = killed
            how = tiny_fleet.settings(rounds=4, devices=2, blocks=2)
            heads.append(tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event))
            await heads[0].run()
            return heads[0], events, kept

    head, events, kept = asyncio.run(whole())
    tasks = {(e["round"], e["device"]): e for e in events if e["event"] == "task"}
    assert tasks[2, "d1"]["result"] == "gone"
    assert tasks[2, "d0"]["result"] == "accepted"
    (block,) = [block for block in tasks[2, "d1"]["blocks"] if block]
    for name in head.state.blocks.names[block]:
        assert torch.equal(kept[1][name], kept[2][name])
        assert not torch.equal(kept[2][name], kept[3][name])
    assert (3, "d1") not in tasks
    assert any("left: d1" in e["why"] for e in events if e["event"] == "planned")


def test_a_device_that_comes_back_catches_up_from_what_it_holds(tmp_path):
    """Once as a link that was cut (the process holds what it held), once as a new process (which holds nothing)."""

    async def whole():
        events, back, trainings = [], {3: asyncio.Event(), 6: asyncio.Event()}, devices(2)
        times = []
        fresh = tiny_fleet.training(1)  # made now: a training that runs beside would disturb its random weights

        async def patient(message, answer):
            if message.kind == "task" and message.facts["round"] in back:
                await back[message.facts["round"]].wait()
            return await answer(message)

        async def timed(message, answer):
            if message.kind == "task":
                times.append(message.facts["expires_in"])
            return await answer(message)

        def on_event(event):
            events.append(event)
            ready = [e for e in events if e["event"] == "ready" and e["device"] == "d1"]
            for number, count in ((3, 2), (6, 3)):
                if len(ready) == count:
                    back[number].set()

        async with tiny_fleet.fleet(trainings, {"d0": patient, "d1": timed}) as made:
            how = tiny_fleet.settings(rounds=9, devices=2, mode="fedavg", first_deadline=50.0)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event)
            running = asyncio.create_task(head.run())

            async def answered(count):
                while made.hub.traffic("d1")[1].messages.get("gradients", 0) < count:
                    await asyncio.sleep(0.001)

            await answered(3)
            device = made.devices["d1"]
            await made.lose("d1")
            device._link = made.hub.device("d1")  # another link; the process and what it holds stay
            made.serving["d1"] = asyncio.create_task(device.serve(stay=True))
            await answered(6)
            await made.lose("d1")
            trainings["d1"] = made.trainings["d1"] = fresh
            made.join("d1")
            await running
            return head, events, trainings, times

    head, events, trainings, times = asyncio.run(whole())
    assert times == [50, 50, 30, 50, 30, 30]  # of both processes: the first tasks get the time to compile
    ready = [e["holds"] for e in events if e["event"] == "ready" and e["device"] == "d1"]
    assert ready == [0, 2, 0]  # it goes on from what it holds; it is installed anew, and sent all that changed since
    results = {e["round"]: e["result"] for e in events if e["event"] == "task" and e["device"] == "d1"}
    assert results == dict.fromkeys(range(1, 10), "accepted")
    values = {n: p for n, p in trainings["d1"].model.named_parameters() if n in head.state.values}
    assert all(torch.equal(values[name], head.state.values[name]) for name in values)


class Stopped(Exception):
    """Ends a coordinator the hard way, at an exact point."""


def stop_after(number):
    def on_event(event):
        if event["event"] == "round" and event["round"] == number:
            raise Stopped

    return on_event


def base(seed=7, **about):
    """The coordinator's model; its head's seed must not matter after a resumption."""
    return tiny_fleet.model(seed=seed, **about)


@pytest.mark.parametrize(
    "how",
    ["deft", "replicate", "fedavg", "local", "revive", "dropout", "half", "quarter", "local half", "turns", "passing"],
)
def test_a_resumed_run_ends_with_the_values_of_one_that_was_not_stopped(tmp_path, how):
    more = {
        "local": {"mode": "fedavg", "local_steps": 2, "optimiser": "fedavgm"},
        "revive": {"mode": "deft", "active_share": 0.25},
        "dropout": {"mode": "deft"},
        "half": {"mode": "deft", "upload": "bfloat16"},
        "quarter": {"mode": "deft", "upload": "float8"},
        "turns": {"mode": "deft", "turns": 0.1, "blocks": 2},
        "passing": {"mode": "deft", "turns": 0.1, "passing": 0.5, "upload": "float8"},
        "local half": {"mode": "fedavg", "local_steps": 2, "upload": "bfloat16"},
    }.get(how, {"mode": how})
    count = 1 if how == "dropout" else 2  # dropout draws from the process's generator, and threads share it
    about = {"dropout": 0.2} if how == "dropout" else {}
    settings = tiny_fleet.settings(**{"rounds": 16, "devices": count, "optimiser": "fedadamw", **more})
    whole, result, _ = tiny_fleet.run(tmp_path / "whole", settings, devices(count, **about), base=base(**about))

    async def killed_and_resumed():
        async with tiny_fleet.fleet(devices(count, **about)) as made:
            for number in (3, 11):
                head = tiny_fleet.coordinator(
                    made, tmp_path / "run", settings, on_event=stop_after(number), base=base(**about)
                )
                with pytest.raises(Stopped):
                    await head.run(resume=number > 3)
            events = []
            again = tiny_fleet.coordinator(
                made, tmp_path / "run", settings, on_event=events.append, base=base(seed=55, **about)
            )
            return again, await again.run(resume=True), events

    head, again, events = asyncio.run(killed_and_resumed())
    assert [e["round"] for e in events if e["event"] == "resumed"] == [11]
    assert [e["round"] for e in events if e["event"] == "round"] == list(range(12, 17))
    assert [e["holds"] for e in events if e["event"] == "ready"] == [10] * count  # the devices stayed warm
    assert again.version == result.version
    for name, value in whole.state.values.items():
        assert torch.equal(value, head.state.values[name]), name
    one, other = whole.delta().save(tmp_path / "a"), head.delta().save(tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()


def test_a_run_that_was_stopped_as_it_began_can_go_on(tmp_path):
    how = tiny_fleet.settings(rounds=2)

    def at(event_name):
        def on_event(event):
            if event["event"] == event_name:
                raise Stopped

        return on_event

    async def whole():
        async with tiny_fleet.fleet(devices(1)) as made:
            for number, name in enumerate(("support", "planned", "task")):
                head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=at(name))
                with pytest.raises(Stopped):
                    await head.run(resume=number > 0)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how)
            return await head.run(resume=True)

    assert asyncio.run(whole()).version == 2


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), devices(1))

    async def again(path="run", **changes):
        async with tiny_fleet.fleet(devices(1)) as made:
            await tiny_fleet.coordinator(made, tmp_path / path, tiny_fleet.settings(**changes)).run(resume=True)

    with pytest.raises(InputError, match=r"lr=0.05 \(now 0.01\), rounds=1 \(now 2\)"):
        asyncio.run(again(rounds=2, lr=0.01))
    with pytest.raises(InputError, match="no run to resume"):
        asyncio.run(again("nowhere"))
    asyncio.run(again(rounds=1, wait_seconds=5.0))
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: damaged"):
        asyncio.run(again(rounds=1))


def test_a_full_disk_ends_the_run_with_the_last_version_intact(tmp_path, monkeypatch):
    how, real = tiny_fleet.settings(rounds=4, mode="fedavg"), os.fsync
    whole, _, _ = tiny_fleet.run(tmp_path / "whole", how, devices(1))

    def full(event):
        if event["event"] == "round" and event["round"] == 2:
            monkeypatch.setattr(os, "fsync", no_space)

    def no_space(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run():
        async with tiny_fleet.fleet(devices(1)) as made:
            with pytest.raises(InputError, match=r"No space left.*version-2.safetensors is whole"):
                await tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=full).run()
            monkeypatch.setattr(os, "fsync", real)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how)
            await head.run(resume=True)
            return head

    head = asyncio.run(run())
    assert all(torch.equal(value, head.state.values[name]) for name, value in whole.state.values.items())


def test_it_is_planned_anew_when_a_device_comes_and_when_one_slows_down(tmp_path):
    async def whole():
        trainings = devices(3)
        async with tiny_fleet.fleet({name: trainings[name] for name in ("d0", "d1")}) as made:
            events = []

            def on_event(event):
                events.append(event)
                if event["event"] == "round" and event["round"] == 2:
                    made.trainings["d2"] = trainings["d2"]
                    made.join("d2")

            how = tiny_fleet.settings(rounds=40, devices=2, follow_pace=True, drift=0.5)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event)
            await head.run()
            return events

    events = asyncio.run(whole())
    planned = [e for e in events if e["event"] == "planned"]
    assert all(e["result"] == "accepted" for e in events if e["event"] == "task")
    assert any("joined: d2" in e["why"] for e in planned)
    assert any("other pace" in e["why"] for e in planned)  # the guess for devices without a profile was far off
    assert any(e["corrections"]["d0"] != 1.0 for e in planned)
    assert any(e["device"] == "d2" and e["result"] == "accepted" for e in events if e["event"] == "task")
    last = [e for e in events if e["event"] == "task"][-3:]
    assert all(0.05 < e["predicted_seconds"] / e["observed_seconds"] < 20 for e in last)


def test_nothing_of_a_devices_rows_is_sent(tmp_path):
    """What leaves a device, by kind: sums, counts, gradients of assigned entries; no row, no token id, no label."""
    sent = {}

    async def listen(message, answer):
        found = await answer(message)
        sent.setdefault(found.kind, []).append(found)
        return found

    head, _, _ = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(), devices(1), changes={"d0": listen})
    assert sent.keys() == {"hello", "statistics", "installed", "gradients", "bye"}
    for answer in sent["gradients"]:
        assert answer.facts.keys() == {"run", "round", "version", "tokens", "loss", "seconds"}
        assert answer.tensors.keys() <= head.state.values.keys()
        assert all(tensor.is_floating_point() for tensor in answer.tensors.values())
    (sums,) = sent["statistics"]
    assert all(name.startswith("squares/") and t.dim() == 1 for name, t in sums.tensors.items())
    te.load(head.delta().save(tmp_path / "delta.safetensors"))
