"""A run under Flower ends with the values of a run without it, bit by bit, and lies never touch the model."""

import pytest
import tiny_fleet
import torch
from lying_devices import LIES, UNREADABLE

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import flower_grid
from flwr.app import ArrayRecord, Error
from flwr.app import Message as FlowerMessage

import taskedge as te
from taskedge.cooperation.flower.client import client_app
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.errors import InputError, TaskEdgeError


def started(grid, how, rounds=None, **more):
    """(strategy, Flower's result, events)"""
    events = []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), how, on_event=events.append, **more)
    result = strategy.start(grid, strategy.arrays(), num_rounds=rounds or how.rounds, timeout=60)
    return strategy, result, events


KINDS = {
    "deft": {"mode": "deft"},
    "replicate": {"mode": "replicate", "server_optimizer": "fedadamw"},
    "fedavg, values": {"mode": "fedavg", "local_steps": 2, "server_optimizer": "fedavgm"},
    "half the bytes": {"mode": "deft", "upload": "bfloat16", "server_optimizer": "fedadam", "clip": 1.0, "warmup": 0.5},
    "half the bytes of values": {"mode": "fedavg", "local_steps": 2, "upload": "bfloat16"},
    "merged blocks": {"mode": "deft", "blocks": 2, "head": "first"},
    "idle modules": {"mode": "fedavg", "active_share": 0.25, "rounds": 12},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_ends_with_the_values_of_a_run_without_flower(tmp_path, kind):
    how = tiny_fleet.settings(devices=3, **KINDS[kind])
    more = {"freezing": FreezingConfig(0.25, stage=2, window=2, every=6)} if kind == "idle modules" else {}
    head, _, expected = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(3), **more)
    strategy, result, events = started(flower_grid.grid(3), how, **more)
    assert strategy.state.version == head.state.version == how.rounds
    for name, value in head.state.values.items():
        assert torch.equal(value, strategy.state.values[name]), name
        assert torch.equal(value, torch.from_numpy(result.arrays[name].numpy().copy()))
    one, other = te.save(head.delta(), tmp_path / "a"), te.save(strategy.delta(), tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()

    fields = ("round", "device", "blocks", "result", "tokens", "loss")

    def tasks(events):
        return [[event[field] for field in fields] for event in events if event["event"] == "task"]

    assert tasks(events) == tasks(expected)
    losses = [e["loss"] for e in expected if e["event"] == "round"]
    assert [result.train_metrics_clientapp[number]["loss"] for number in range(1, how.rounds + 1)] == losses


def test_what_a_node_holds_outlives_its_process(tmp_path):
    """A new client app for every message, as SuperNodes start them; only what changed is sent."""
    how = tiny_fleet.settings(devices=2)
    whole, _, _ = started(flower_grid.grid(2), how)
    grid = flower_grid.grid(2)

    def afresh(message, context):
        return client_app(flower_grid.node_setup)(message, context)

    grid.apps = dict.fromkeys(grid.apps, afresh)
    strategy, _, _ = started(grid, how)
    assert all(torch.equal(strategy.state.values[name], value) for name, value in whole.state.values.items())
    kinds = [from_content(message.content).kind for message in grid.sent]
    assert kinds == ["hello"] * 2 + ["statistics"] * 2 + ["install"] * 2 + ["task"] * 8
    since = [from_content(message.content).header["since"] for message in grid.sent[-8:]]
    assert since == [0, 0, 0, 0, 1, 1, 2, 2]


def lying(lie):
    def change(message, reply):
        answer = from_content(reply.content)
        if answer.kind != "gradients":
            return reply
        return FlowerMessage(to_content(lie(answer)), reply_to=message)

    return change


def garbage(message, reply):
    if from_content(reply.content).kind == "gradients":
        reply.content["taskedge"] = ArrayRecord()
    return reply


@pytest.mark.parametrize("why", [*sorted(LIES), UNREADABLE])
def test_a_wrong_answer_is_refused_and_never_touches_the_model(why):
    how = tiny_fleet.settings(devices=2, mode="fedavg", quarantine_after=2)
    grid = flower_grid.grid(2)
    grid.changes[99] = lying(LIES[why]) if why in LIES else garbage  # d1
    strategy, _, events = started(grid, how)
    tasks = [e for e in events if e["event"] == "task"]
    assert [(e["round"], e["result"]) for e in tasks if e["device"] == "d1"] == [(1, "refused"), (2, "refused")]
    assert all(why in e["why"] for e in tasks if e["device"] == "d1")
    assert [(e["device"], e["refused"]) for e in events if e["event"] == "quarantined"] == [("d1", 2)]

    silent = flower_grid.grid(2)
    silent.changes[99] = lambda message, reply: (
        FlowerMessage(Error(1, "off"), reply_to=message) if message.metadata.message_type == "train" else reply
    )
    other, _, _ = started(silent, how)
    assert all(torch.equal(strategy.state.values[n], v) for n, v in other.state.values.items())


def test_an_answer_that_does_not_come_is_late_and_one_that_failed_is_gone():
    how = tiny_fleet.settings(devices=2, rounds=1)
    for change, result in (
        (lambda message, reply: None, "late"),
        (lambda message, reply: FlowerMessage(Error(1, "died"), reply_to=message), "gone"),
    ):
        grid = flower_grid.grid(2)
        grid.changes[99] = lambda message, reply, change=change: (
            change(message, reply) if message.metadata.message_type == "train" else reply
        )
        _, _, events = started(grid, how)
        assert {e["device"]: e["result"] for e in events if e["event"] == "task"} == {"d0": "accepted", "d1": result}


def test_it_gives_up_where_no_answer_is_usable():
    grid = flower_grid.grid(1)
    grid.changes[100] = lambda message, reply: None if message.metadata.message_type == "train" else reply
    with pytest.raises(TaskEdgeError, match="5 rounds in a row without a usable answer"):
        started(grid, tiny_fleet.settings(rounds=9))


def test_missing_nodes_and_wrong_calls_are_named():
    soon = tiny_fleet.settings(rounds=1, wait_seconds=0.1)
    with pytest.raises(TaskEdgeError, match=r"2 are needed, there: d0\)"):
        started(flower_grid.grid(1), tiny_fleet.settings(devices=2, wait_seconds=0.1))
    with pytest.raises(TaskEdgeError, match=r"d0: its labels are \[\], not \['no', 'yes'\]"):
        started(flower_grid.grid(1), soon, labels=["no", "yes"])
    twins = flower_grid.grid(1)
    twins.join(7, client_app(flower_grid.node_setup), name="d0", number=1)
    with pytest.raises(TaskEdgeError, match="another node is called d0"):
        started(twins, tiny_fleet.settings(devices=2, wait_seconds=0.1))
    with pytest.raises(InputError, match="round 2 after round 1 of 1"):
        started(flower_grid.grid(1), soon, rounds=2)
    strategy = TaskEdgeStrategy(tiny_fleet.model(), soon)
    with pytest.raises(InputError, match="configure_train first"):
        strategy.aggregate_train(1, [])
    with pytest.raises(InputError, match="start it first"):
        strategy.delta()
    assert set(strategy.arrays()) == {"classifier.weight", "classifier.bias"}


def test_flower_evaluates_at_the_server_with_the_runs_values():
    seen = []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), tiny_fleet.settings(rounds=2))
    grid = flower_grid.grid(1)
    strategy.start(grid, strategy.arrays(), 2, evaluate_fn=lambda number, arrays: seen.append((number, len(arrays))))
    assert [number for number, _ in seen] == [0, 1, 2]
    assert seen[0][1] < seen[1][1] == len(strategy.state.values)
    assert isinstance(strategy.delta(), te.Delta)
