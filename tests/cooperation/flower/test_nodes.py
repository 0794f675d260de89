"""Nodes that are silent, leave and come, and how often they are queried."""

import pytest
import tiny_fleet

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import flower_grid
from flwr.app import ConfigRecord

from taskedge.cooperation.flower.client import client_app
from taskedge.cooperation.flower.records import from_content
from taskedge.cooperation.flower.strategy import TaskEdgeStrategy


def test_nodes_that_are_silent_leave_and_come_are_planned_around():
    how = tiny_fleet.settings(devices=2, rounds=6, wait_seconds=0.2)
    grid = flower_grid.grid(2)
    events = []
    strategy = TaskEdgeStrategy(tiny_fleet.model(), how, on_event=events.append)
    tasks = {}
    for number in range(1, 7):
        grid.changes = {99: lambda message, reply: None} if number == 2 else {}
        if number == 4:
            grid.leave(99)
        if number == 5:
            grid.join(5, client_app(flower_grid.node_setup), name="d1", number=1)  # the same device under a new id
        messages = list(strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid))
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert arrays is not None
        tasks[number] = {e["device"]: e["result"] for e in events if e["event"] == "task" and e["round"] == number}
    both = {"d0": "accepted", "d1": "accepted"}
    late = {"d0": "accepted", "d1": "late"}
    assert tasks == {1: both, 2: late, 3: both, 4: {"d0": "accepted"}, 5: both, 6: both}
    left = [(e["event"], e["device"]) for e in events if e["event"] in ("joined", "left")]
    assert left == [("joined", "d1"), ("joined", "d0"), ("joined", "d1"), ("left", "d1"), ("joined", "d1")]


def test_a_node_that_stays_silent_is_queried_less_and_less_often():
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
