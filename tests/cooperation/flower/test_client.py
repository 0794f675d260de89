"""The client app answers as a device does, also if every message meets a new process."""

import pytest
import tiny_fleet
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")
import flower_grid
from flwr.app import Context, RecordDict

import taskedge as te
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.flower.client import NodeSetup, client_app
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import encode_support


def install():
    model = tiny_fleet.model()
    facts, tensors = encode_support(te.select(model, rule="magnitude", per_neuron=1))
    head = {f"head/{name}": p.detach() for name, p in model.named_parameters() if name.startswith("classifier")}
    return Message("install", {"run": "r", "step": "plain", "sizes": None, "support": facts}, {**tensors, **head})


def task(since, version, tensors=None):
    round_task, recipe = tiny_fleet.round_task(blocks=(0, 1), head_lr=0.1)
    facts = {"run": "r", "round": 1, "version": version, "since": since, "expires_in": 60.0, "upload": "bfloat16"}
    return Message("task", {**facts, "job": round_task.header(recipe)}, tensors or {})


def context(node=9, **config):
    return Context(flower_grid.RUN, node, {"number": 0, **config}, RecordDict(), {})


def answers(apps, here, *messages):
    return [flower_grid.answer(app, here, message) for app, message in zip(apps, messages, strict=True)]


def same(one, other):
    assert (one.kind, one.tensors.keys()) == (other.kind, other.tensors.keys())
    assert {k: v for k, v in one.header.items() if k != "seconds"} == {
        k: v for k, v in other.header.items() if k != "seconds"
    }
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("processes", ["one", "a new one for every message"])
def test_it_answers_what_a_device_answers(processes):
    change = {"classifier.bias": torch.full((3,), 0.25)}
    messages = [Message("hello", {}), install(), task(0, 0), task(0, 1, change), task(1, 1), Message("hello", {})]
    device = Device(None, tiny_fleet.training(0), memory_bytes=1e9)

    async def ask():
        return [await device.answer(message) for message in messages]

    expected = flower_grid.alone(ask())
    assert [one.kind for one in expected] == ["hello", "installed", *["gradients"] * 3, "hello"]
    made = []

    def make(here):
        made.append(here.node_id)
        return NodeSetup(tiny_fleet.training(0), memory_bytes=1e9)

    apps = [client_app(make)] * 6 if processes == "one" else [client_app(make) for _ in messages]
    found = answers(apps, context(name="edge"), *messages)
    for one, other in zip(found, expected, strict=True):
        same(Message(one.kind, {k: v for k, v in one.header.items() if k != "name"}, one.tensors), other)
    assert found[0].header["name"] == "edge"
    assert len(made) == (1 if processes == "one" else 6)


def test_a_loaded_device_that_missed_messages_restores_its_context():
    warm, other, here = client_app(flower_grid.node_setup), client_app(flower_grid.node_setup), context()
    answers([warm, other], here, install(), task(0, 1, {"classifier.bias": torch.ones(3)}))
    one, two = answers([warm, client_app(flower_grid.node_setup)], here, task(1, 1), task(1, 1))
    assert one.kind == "gradients"
    same(one, two)


def test_statistics_uninstall_the_support():
    apps, here = [client_app(flower_grid.node_setup) for _ in range(3)], context()
    ask = Message("statistics", {"needs": ["inputs"], "batches": 1, "batch_size": 4, "seed": 0})
    _, _, last = answers(apps, here, install(), ask, task(0, 0))
    assert last.kind == "unready"
    assert not here.state


def test_the_set_number_of_devices_stays_loaded():
    made = []

    def make(here):
        made.append(here.node_id)
        return flower_grid.node_setup(here)

    for warm, loads in ((1, [1, 2, 1, 2]), (2, [1, 2])):
        made.clear()
        app, nodes = client_app(make, warm=warm), [context(1), context(2)]
        for here in nodes * 2:
            flower_grid.answer(app, here, Message("hello", {}))
        assert made == loads


def test_other_contents_are_refused():
    from flwr.app import Message as FlowerMessage

    flower_grid.InProcess()
    with pytest.raises(MessageError, match="hold no message"):
        client_app(flower_grid.node_setup)(FlowerMessage(RecordDict(), 9, "query"), context())
