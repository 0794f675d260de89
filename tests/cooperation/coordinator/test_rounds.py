"""Devices that lie, break, come late or leave, and a disk that is full: what a round does about them."""

import asyncio
import errno
import os

import pytest
import tiny_fleet
import torch
from lying_devices import LIES, UNREADABLE, Garbage, altered, liar

import taskedge as te
from taskedge.cooperation.coordinator.dispatch import TaskOutcome
from taskedge.cooperation.coordinator.rounds import (
    MAX_DIVERGED_ROUNDS,
    MAX_EMPTY_ROUNDS,
    StoppingRule,
    mean_loss,
)
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.validation import AcceptedAnswer
from taskedge.cooperation.transport.request_reply import LATE
from taskedge.errors import InputError, TaskEdgeError, TrainingDiverged

UNUSABLE = {**LIES, UNREADABLE: lambda answer: Garbage()}


def accepted(tokens=1, loss=0.5):
    return AcceptedAnswer({}, tokens, loss, 0.1)


def test_the_mean_loss_is_weighted_by_tokens():
    assert mean_loss([accepted(3, 1.0), accepted(1, 5.0)]) == 2.0
    assert mean_loss([]) is None


def test_a_run_stops_after_rounds_without_usable_answers():
    rule, late = StoppingRule(), TaskOutcome("late", "no answer in time")
    for _ in range(2):
        for number in range(1, MAX_EMPTY_ROUNDS):
            rule.check(number, [late])
        rule.check(MAX_EMPTY_ROUNDS, [late, TaskOutcome("accepted", answer=accepted())])  # starts the count anew
    for number in range(1, MAX_EMPTY_ROUNDS):
        rule.check(number, [late])
    with pytest.raises(TaskEdgeError, match=r"5 rounds in a row .*late no answer in time"):
        rule.check(MAX_EMPTY_ROUNDS, [late])


def test_a_run_has_diverged_if_no_answer_is_finite():
    rule = StoppingRule()
    diverged = TaskOutcome("refused", "not finite: the loss")
    for _ in range(MAX_DIVERGED_ROUNDS):  # one device that is late says nothing about divergence
        rule.check(1, [diverged, TaskOutcome("late")])
    rule.check(3, [diverged, diverged])
    with pytest.raises(TrainingDiverged, match="in round 4 no device's answer was finite"):
        rule.check(4, [diverged, diverged])


@pytest.mark.slow
@pytest.mark.parametrize("why", sorted(UNUSABLE))
def test_a_wrong_answer_is_refused_and_never_touches_the_model(tmp_path, why):
    """The run ends with the very values of one in which the liar trains nothing at all."""
    how = tiny_fleet.settings(rounds=4, mode="fedavg", devices=2, quarantine_after=2)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(2), changes={"d1": liar(UNUSABLE[why])})
    refused = [e for e in events if e["event"] == "task" and e["result"] == "refused"]
    assert [(e["device"], e["round"], e["refused"]) for e in refused] == [("d1", 1, 1), ("d1", 2, 2)]
    assert all(why in e["why"] for e in refused)
    assert [(e["device"], e["refused"]) for e in events if e["event"] == "quarantined"] == [("d1", 2)]
    assert {e["device"] for e in events if e["event"] == "task" and e["round"] > 2} == {"d0"}

    async def silent(message, answer):
        return Message("error", {"why": "off"}) if message.kind == "task" else await answer(message)

    other, _, _ = tiny_fleet.run(tmp_path / "other", how, tiny_fleet.devices(2), changes={"d1": silent})
    assert all(torch.equal(head.state.values[name], other.state.values[name]) for name in head.state.values)


@pytest.mark.parametrize("local_steps", [1, 2])
def test_a_huge_answer_is_scaled_to_the_median_from_the_first_round_on(tmp_path, local_steps):
    """And its device is named: it moves the values no further than an honest answer of that direction."""

    async def scaled(message, answer):
        honest = await answer(message)
        if message.kind != "task":
            return honest
        return altered(honest, {name: 50 * tensor for name, tensor in honest.tensors.items()})

    how = tiny_fleet.settings(rounds=2, mode="fedavg", devices=2, lr=0.001, local_steps=local_steps, upload="bfloat16")
    moved = {}
    for name, changes in (("honest", {}), ("lied", {"d1": scaled})):
        head, _, events = tiny_fleet.run(tmp_path / name, how, tiny_fleet.devices(2), changes=changes)
        rounds = [event for event in events if event["event"] == "round"]
        assert [event["accepted"] for event in rounds] == [2, 2], [event.get("why") for event in events]
        assert [event["scaled"] for event in rounds] == [list(changes)] * 2
        moved[name] = max((v - head.state.initial_values[n]).abs().max() for n, v in head.state.values.items())
    assert moved["lied"] < 3 * moved["honest"]


def test_a_run_that_diverged_is_not_the_devices_fault(tmp_path):
    everyone = {f"d{place}": liar(LIES["not finite"], start=2) for place in range(2)}
    with pytest.raises(TrainingDiverged, match="lower learning rate"):
        tiny_fleet.run(
            tmp_path / "run", tiny_fleet.settings(rounds=9, devices=2), tiny_fleet.devices(2), changes=everyone
        )


@pytest.mark.slow
def test_a_run_without_usable_answers_stops_and_names_the_reason(tmp_path):
    how = tiny_fleet.settings(rounds=20, quarantine_after=99)
    with pytest.raises(TaskEdgeError, match=r"5 rounds in a row without a usable answer .*wrong shape"):
        tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(1), changes={"d0": liar(LIES["wrong shape"])})
    how = tiny_fleet.settings(rounds=20, wait_seconds=0.3)
    with pytest.raises(TaskEdgeError, match=r"no device has been ready for 0\.3 s"):
        tiny_fleet.run(tmp_path / "other", how, tiny_fleet.devices(1), changes={"d0": liar(LIES["wrong shape"])})


def values_after(head_of, kept):
    """Keeps the values after every round."""

    def on_event(event):
        if event["event"] == "round":
            kept[event["round"]] = {name: value.clone() for name, value in head_of().state.values.items()}

    return on_event


@pytest.mark.slow
def test_a_late_answer_is_not_used_and_the_block_keeps_its_values(tmp_path):
    """d1 answers its third task after the deadline; then it is asked who it is, and has tasks again."""

    async def whole():
        over, events, kept, heads = asyncio.Event(), [], {}, []

        async def slow(message, answer):
            found = await answer(message)
            if message.kind == "task" and message.header["round"] == 3:
                await over.wait()
            return found

        def on_event(event):
            events.append(event)
            values_after(lambda: heads[0], kept)(event)
            if event["event"] == "round" and event["round"] == 4:
                over.set()

        async with tiny_fleet.fleet(tiny_fleet.devices(2), {"d1": slow}) as made:
            how = tiny_fleet.settings(rounds=30, devices=2, blocks=2, min_deadline=3.0, deadline_factor=1.01)
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
        events, kept, heads, trainings = [], {}, [], tiny_fleet.devices(2)
        loop = asyncio.get_running_loop()

        def on_event(event):
            events.append(event)
            values_after(lambda: heads[0], kept)(event)

        async with tiny_fleet.fleet(trainings) as made:
            train = trainings["d1"].train

            def killed(task, recipe, check):
                if recipe.round == 2:
                    loop.call_soon_threadsafe(made.serving["d1"].cancel)
                return train(task, recipe, check)

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


def test_a_full_disk_ends_the_run_with_the_last_version_intact(tmp_path, monkeypatch):
    how, real = tiny_fleet.settings(rounds=4, mode="fedavg"), os.fsync
    whole, _, _ = tiny_fleet.run(tmp_path / "whole", how, tiny_fleet.devices(1))

    def full(event):
        if event["event"] == "round" and event["round"] == 2:
            monkeypatch.setattr(os, "fsync", no_space)

    def no_space(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run():
        async with tiny_fleet.fleet(tiny_fleet.devices(1)) as made:
            with pytest.raises(InputError, match=r"No space left.*version-2.safetensors is whole"):
                await tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=full).run()
            monkeypatch.setattr(os, "fsync", real)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how)
            await head.run(resume=True)
            return head

    head = asyncio.run(run())
    assert all(torch.equal(value, head.state.values[name]) for name, value in whole.state.values.items())


@pytest.mark.slow
def test_it_is_planned_anew_when_a_device_comes_and_when_one_slows_down(tmp_path):
    async def whole():
        trainings = tiny_fleet.devices(3)
        async with tiny_fleet.fleet({name: trainings[name] for name in ("d0", "d1")}) as made:
            events = []

            def on_event(event):
                events.append(event)
                if event["event"] == "round" and event["round"] == 2:
                    made.trainings["d2"] = trainings["d2"]
                    made.join("d2")

            how = tiny_fleet.settings(rounds=40, devices=2, calibrate=True, replan_drift=0.5)
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

    head, _, _ = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(), tiny_fleet.devices(1), changes={"d0": listen})
    assert sent.keys() == {"hello", "statistics", "installed", "gradients", "bye"}
    for answer in sent["gradients"]:
        assert answer.header.keys() == {"run", "round", "version", "tokens", "loss", "seconds"}
        assert answer.tensors.keys() <= head.state.values.keys()
        assert all(tensor.is_floating_point() for tensor in answer.tensors.values())
    (sums,) = sent["statistics"]
    assert all(name.startswith("squares/") and t.dim() == 1 for name, t in sums.tensors.items())
    te.load(te.save(head.delta(), tmp_path / "delta.safetensors"))
