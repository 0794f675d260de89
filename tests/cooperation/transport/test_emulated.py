"""An emulated device is as slow as planned, and computes the same values."""

import asyncio
import time
from pathlib import Path

import pytest
import tiny_fleet
import torch

from taskedge.cooperation.device.device import Device
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.emulated import NOMINAL_FIELDS, EmulatedLink
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.planning.fleet_file import parse_fleet


def nominal(*values):
    return dict(zip(NOMINAL_FIELDS, values, strict=True))


def answer_of(task, work=0.0, answer=None):
    """The answer of an emulated device, its seconds, and the lines that it logged."""
    link, lines = MemoryCoordinatorLink(), []
    answer = answer or Message("gradients", {"seconds": work, "tokens": 3}, {"w": torch.ones(1000)})

    async def device(message):
        await asyncio.sleep(work)
        return answer

    async def whole():
        emulated = EmulatedLink(link.device("d"), lines.append)
        serving = asyncio.create_task(emulated.serve(device))
        started = time.monotonic()
        found = await link.request("d", task, 60.0)
        took = time.monotonic() - started
        serving.cancel()
        await emulated.close()
        return found, took

    return *asyncio.run(whole()), lines


def bits(message):
    return 8 * len(message.pack())


def test_it_takes_the_nominal_seconds_for_each_way_and_for_training():
    values = {"values": torch.zeros(500)}
    size = bits(Message("task", nominal(0.3, 1.0, 1.0), values))
    task = Message("task", nominal(0.3, size / 0.2, 40000 / 0.1), values)  # numbers of other lengths: some bytes off
    found, took, lines = answer_of(task)
    up = bits(found) / (40000 / 0.1)
    assert took >= 0.3 + 0.19 + 0.99 * up
    assert 0.3 <= found.header["seconds"] <= took - 0.19 - 0.99 * up
    assert found.header["real_seconds"] == 0.0
    assert found.header["tokens"] == 3
    assert torch.equal(found.tensors["w"], torch.ones(1000))
    assert lines == []


def test_a_slower_real_step_is_logged_and_keeps_its_seconds():
    found, took, lines = answer_of(Message("task", nominal(0.05, 1e12, 1e12)), work=0.2)
    assert 0.2 <= found.header["seconds"] <= took
    assert found.header["real_seconds"] == 0.2
    assert "the real step took 0.20 s, longer than the 0.05 s to emulate" in lines[0]


@pytest.mark.parametrize(
    "task", [Message("hello", nominal(600.0, 1.0, 1.0)), Message("task", {"round": 1})], ids=["hello", "unstated"]
)
def test_other_messages_pass_unchanged(task):
    answer = Message("hello", {"rows": 3, "seconds": 1.0})
    found, _, _ = answer_of(task, answer=answer)
    assert found.header == answer.header


def test_an_expired_task_is_not_delayed():
    expired = Message("expired", {"round": 1})
    found, _, _ = answer_of(Message("task", nominal(600.0, 1e12, 1e12)), answer=expired)
    assert found.header == expired.header


def fleet_of(*flops):
    rows = [
        {
            "name": f"d{index}",
            "flops_per_second": rate,
            "utilisation_ratio": 1.0,
            "memory_bytes": 4e9,
            "tokens_per_round": 96,
            "batch_sequences": 4,
            "wired_bits_per_second": 4e6,
        }
        for index, rate in enumerate(flops)
    ]
    known = {"channel": {"bandwidth_hz": 1e6}, "model": {"path": "tiny", "sequence_tokens": 24}, "device": rows}
    raw = {"server": {"downlink_bits_per_second": 4e6}, **known}
    return parse_fleet(raw, Path("fleet.toml"))


@pytest.mark.slow
def test_an_emulated_run_is_as_slow_as_the_fleet_file_says_and_ends_with_the_same_values(tmp_path):
    """Nominal costs stay those of the fleet file, however far observed seconds are from them."""
    fleet = fleet_of(1e8, 4e7)
    how = tiny_fleet.settings(rounds=4, devices=2, blocks=2, calibrate=True, replan_drift=100.0, solver="one-each")

    def run(name, wrap):
        events, trainings = [], {f"d{place}": tiny_fleet.training(place) for place in range(2)}

        async def whole():
            made = tiny_fleet.Fleet(trainings)
            for device, training in trainings.items():
                made.devices[device] = Device(wrap(made.hub.device(device)), training)
                made.serving[device] = asyncio.create_task(made.devices[device].serve(stay=True))
            try:
                head = tiny_fleet.coordinator(made, tmp_path / name, how, on_event=events.append, fleet=fleet)
                await head.run()
            finally:
                await made.close()
            return head

        head = asyncio.run(whole())
        return head.state.values, [event for event in events if event["event"] == "task"]

    values, tasks = run("emulated", EmulatedLink)
    plain, unpaced = run("plain", lambda link: link)
    assert all(torch.equal(values[name], plain[name]) for name in plain)
    assert [e["real_seconds"] for e in unpaced] == [None] * 8
    assert {e["result"] for e in tasks} == {"accepted"}
    for event in tasks:
        assert event["observed_seconds"] >= event["compute_seconds"] >= event["stated_seconds"] > 0
        assert event["observed_seconds"] >= event["stated_seconds"] + 8 * event["bytes_up"] / 4e6
        assert event["real_seconds"] > 0
    for device in ("d0", "d1"):
        assert len({round(e["stated_seconds"], 9) for e in tasks if e["device"] == device}) == 1
