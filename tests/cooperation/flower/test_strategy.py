"""A run under Flower ends with the values of our own, bit by bit, and what nodes do wrong never touches the model."""

import pytest
import tiny_fleet
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import flower_grid
from flwr.app import ArrayRecord, ConfigRecord, Error
from flwr.app import Message as FlowerMessage

import taskedge as te
from taskedge.cooperation.flower.client import client_app
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.scheduling.freezing import ReviveSettings
from taskedge.errors import InputError, TaskEdgeError


def devices(count, **about):
    return {f"d{place}": tiny_fleet.training(place, **about) for place in range(count)}


def started(grid, how, rounds=None, **more):
    """(strategy, Flower's result, events)"""
    events = []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), how, on_event=events.append, **more)
    result = strategy.start(grid, strategy.arrays(), num_rounds=rounds or how.rounds, timeout=60)
    return strategy, result, events


KINDS = {
    "deft": {"mode": "deft"},
    "replicate": {"mode": "replicate", "optimiser": "fedadamw"},
    "fedavg, values": {"mode": "fedavg", "local_steps": 2, "optimiser": "fedavgm"},
    "half the bytes": {"mode": "deft", "upload": "bfloat16", "optimiser": "fedadam", "clip": 1.0, "warmup": 0.5},
    "half the bytes of values": {"mode": "fedavg", "local_steps": 2, "upload": "bfloat16"},
    "merged blocks": {"mode": "deft", "blocks": 2, "head": "first"},
    "revive": {"mode": "fedavg", "active_share": 0.25, "rounds": 12},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_ends_with_the_values_of_our_own_run(tmp_path, kind):
    how = tiny_fleet.settings(devices=3, **KINDS[kind])
    more = {"revive": ReviveSettings(0.25, warmup=2, window=2, every=6)} if kind == "revive" else {}
    head, _, ours = tiny_fleet.run(tmp_path / "run", how, devices(3), **more)
    strategy, result, theirs = started(flower_grid.grid(3), how, **more)
    assert strategy.state.version == head.state.version == how.rounds
    for name, value in head.state.values.items():
        assert torch.equal(value, strategy.state.values[name]), name
        assert torch.equal(value, torch.from_numpy(result.arrays[name].numpy().copy()))
    one, other = head.delta().save(tmp_path / "a"), strategy.delta().save(tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()

    def told(events, *facts):
        return [[e[f] for f in facts] for e in events if e["event"] == "task"]

    facts = ("round", "device", "blocks", "result", "tokens", "loss")
    assert told(ours, *facts) == told(theirs, *facts)
    losses = [e["loss"] for e in ours if e["event"] == "round"]
    assert [result.train_metrics_clientapp[number]["loss"] for number in range(1, how.rounds + 1)] == losses


def test_what_a_node_holds_outlives_its_process(tmp_path):
    """A new client app for every message, as SuperNodes start them; only what changed is sent."""
    how = tiny_fleet.settings(devices=2)
    whole, _, _ = started(flower_grid.grid(2), how)
    grid = flower_grid.grid(2)

    def afresh(message, context):
        return client_app(flower_grid.part)(message, context)

    grid.apps = dict.fromkeys(grid.apps, afresh)
    strategy, _, _ = started(grid, how)
    assert all(torch.equal(strategy.state.values[name], value) for name, value in whole.state.values.items())
    kinds = [from_content(message.content).kind for message in grid.sent]
    assert kinds == ["hello"] * 2 + ["statistics"] * 2 + ["install"] * 2 + ["task"] * 8
    since = [from_content(message.content).facts["since"] for message in grid.sent[-8:]]
    assert since == [0, 0, 0, 0, 1, 1, 2, 2]


def changed(answer, tensors=None, **facts):
    return Message(answer.kind, {**answer.facts, **facts}, answer.tensors if tensors is None else tensors)


LIES = {
    "not finite": lambda a: changed(a, {name: t * torch.nan for name, t in a.tensors.items()}),
    "missing": lambda a: changed(a, {}),
    "stale version": lambda a: changed(a, version=7),
    "wrong tokens": lambda a: changed(a, tokens=10**9),
    "kind 'values'": lambda a: Message("values", a.facts, a.tensors),
}


def lying(lie):
    def change(asked, reply):
        answer = from_content(reply.content)
        if answer.kind != "gradients":
            return reply
        return FlowerMessage(to_content(lie(answer)), reply_to=asked)

    return change


def garbage(asked, reply):
    if from_content(reply.content).kind == "gradients":
        reply.content["taskedge"] = ArrayRecord()
    return reply


@pytest.mark.parametrize("why", [*sorted(LIES), "no message"])
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
    silent.changes[99] = lambda asked, reply: (
        FlowerMessage(Error(1, "off"), reply_to=asked) if asked.metadata.message_type == "train" else reply
    )
    other, _, _ = started(silent, how)
    assert all(torch.equal(strategy.state.values[n], v) for n, v in other.state.values.items())


def test_nodes_that_are_silent_leave_and_come_are_planned_around():
    how = tiny_fleet.settings(devices=2, rounds=6, wait_seconds=0.2)
    grid = flower_grid.grid(2)
    events = []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), how, on_event=events.append)
    tasks = {}
    for number in range(1, 7):
        grid.changes = {99: lambda asked, reply: None} if number == 2 else {}
        if number == 4:
            grid.leave(99)
        if number == 5:
            grid.join(5, client_app(flower_grid.part), name="d1", number=1)  # the same device under a new id
        messages = list(strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert arrays is not None
        tasks[number] = {e["device"]: e["result"] for e in events if e["event"] == "task" and e["round"] == number}
    both = {"d0": "accepted", "d1": "accepted"}
    late = {"d0": "accepted", "d1": "late"}
    assert tasks == {1: both, 2: late, 3: both, 4: {"d0": "accepted"}, 5: both, 6: both}
    left = [(e["event"], e["device"]) for e in events if e["event"] in ("joined", "left")]
    assert left == [("joined", "d1"), ("joined", "d0"), ("joined", "d1"), ("left", "d1"), ("joined", "d1")]


def test_a_node_that_stays_silent_is_asked_less_and_less_often():
    """Each query to it costs a deadline; one that answers again is back at once."""
    how = tiny_fleet.settings(devices=2, rounds=16)
    grid, events, asked = flower_grid.grid(2), [], []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), how, on_event=events.append)
    for number in range(1, 17):
        silent = 3 <= number < 10

        def change(message, reply, number=number, silent=silent):
            if from_content(message.content).kind == "hello":
                asked.append(number)
            return None if silent else reply

        grid.changes = {99: change}
        messages = list(strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid))
        strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert asked == [1, 4, 6, 10]
    tasks = [e["round"] for e in events if e["event"] == "task" and e["device"] == "d1" and e["result"] == "accepted"]
    assert tasks == [1, 2, *range(10, 17)]


def test_an_answer_that_does_not_come_is_late_and_one_that_failed_is_gone():
    how = tiny_fleet.settings(devices=2, rounds=1)
    for change, result in (
        (lambda asked, reply: None, "late"),
        (lambda asked, reply: FlowerMessage(Error(1, "died"), reply_to=asked), "gone"),
    ):
        grid = flower_grid.grid(2)
        grid.changes[99] = lambda asked, reply, change=change: (
            change(asked, reply) if asked.metadata.message_type == "train" else reply
        )
        _, _, events = started(grid, how)
        assert {e["device"]: e["result"] for e in events if e["event"] == "task"} == {"d0": "accepted", "d1": result}


def test_it_gives_up_where_no_answer_is_usable():
    grid = flower_grid.grid(1)
    grid.changes[100] = lambda asked, reply: None if asked.metadata.message_type == "train" else reply
    with pytest.raises(TaskEdgeError, match="5 rounds in a row without a usable answer"):
        started(grid, tiny_fleet.settings(rounds=9))


def test_what_cannot_be_is_said():
    soon = tiny_fleet.settings(rounds=1, wait_seconds=0.1)
    with pytest.raises(TaskEdgeError, match=r"2 are needed, there: d0\)"):
        started(flower_grid.grid(1), tiny_fleet.settings(devices=2, wait_seconds=0.1))
    with pytest.raises(TaskEdgeError, match=r"d0: its labels are \[\], not \['no', 'yes'\]"):
        started(flower_grid.grid(1), soon, labels=["no", "yes"])
    twins = flower_grid.grid(1)
    twins.join(7, client_app(flower_grid.part), name="d0", number=1)
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
