"""The device's end with a scripted cloud: what it refuses, and what it runs again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from taskedge.cooperation.cut.base_parts import PartsStore
from taskedge.cooperation.cut.conversation import Conversation, LoopThread
from taskedge.cooperation.cut.cut_messages import CutRefused, as_bytes
from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.cut.module_groups import Module, groups_of
from taskedge.cooperation.protocol.message import Message
from taskedge.errors import InputError

PLAN = {"q": Module("q", (4, 4), "q", torch.tensor([0, 1]), torch.tensor([1, 2, 3]))}
HELLO = {
    **{"protocol": 1, "session": "s", "model": "m", "base": "b", "layers": 2, "width": 4, "dtype": "float32"},
    **{"stack": "layers", "max_tokens": 100, "returns_tuple": False, "parts": "0" * 32, "pieces": 1, "bytes": 1},
}


class Modules:
    """Adds 0, and counts."""

    plan = PLAN

    def __init__(self) -> None:
        self.groups, self.gradients, self.finished = groups_of(PLAN, ["q"]), [], 0

    def begin(self, active):
        return self.groups if active else []

    def products(self, number, columns, *, needs_input_gradient, trains):
        return torch.zeros(len(columns), 2)

    def input_gradients(self, number, gradients):
        self.gradients.append(gradients)

    def finish(self):
        self.finished += 1

    def parked(self, name):
        return {"block": torch.ones(2, 3)}


def matrix(kind: str, shape: tuple[int, int], **header: Any) -> Message:
    fields = {"session": "s", "pass": 1, "group": "q", "needed": False} | header
    return Message(kind, fields, {"matrix": as_bytes(torch.ones(shape), "fp32")})


HONEST = [
    Message("hello", HELLO),
    Message("next", {"session": "s"}),
    Message("next", {"session": "s"}),
    matrix("columns", (2, 3)),
    matrix("states", (2, 4)),
    matrix("gradients", (2, 2)),
    Message("next", {"session": "s"}),
]


def talk(script, tmp_path, act=None):
    """Send a script to a device that runs one pass; return its end, modules and answers."""
    (tmp_path / ("0" * 32)).mkdir(exist_ok=True)
    conversation, answers = Conversation(patience=3), []
    end, modules = DeviceEnd(conversation, PartsStore(tmp_path)), Modules()
    end.modules = modules

    async def ask():
        for message in script:
            answers.append(await conversation.handle(message))

    def one_pass():
        hidden, mask = torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.int64)
        states = end.run(hidden, mask)
        states.sum().backward()
        end.done()

    with LoopThread() as loop:
        loop.start(ask())
        try:
            (act or one_pass)()
            loop.run(asyncio.sleep(0.05))
        except CutRefused:
            loop.run(asyncio.sleep(0.05))
            end.answers = answers
            raise
    return SimpleNamespace(end=end, modules=modules, answers=answers)


def test_a_pass_goes_up_and_comes_back(tmp_path):
    talked = talk(HONEST, tmp_path)
    kinds = [answer.kind for answer in talked.answers]
    assert kinds == ["hello", "plan", "pass", "products", "gradient", "input_gradients", "done"]
    sent = talked.answers[2]
    assert set(sent.tensors) == {"inputs", "mask"}
    assert set(sent.header) == {"session", "pass", "shape", "coding", "trains", "active", "seed"}
    assert torch.equal(talked.modules.gradients[0], torch.ones(2, 2))
    assert talked.modules.finished == 1
    assert talked.end.counted.numbers == 2 * (3 * 4 + 2 * (3 + 2) - 3)


def test_without_an_active_module_only_states_cross(tmp_path):
    def act():
        talked_end.active = []
        states = talked_end.run(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.int64))
        assert not states.requires_grad
        talked_end.done()

    (tmp_path / ("0" * 32)).mkdir()
    conversation, answers = Conversation(patience=3), []
    talked_end = DeviceEnd(conversation, PartsStore(tmp_path))
    talked_end.modules = Modules()

    async def ask():
        for message in [*HONEST[:3], HONEST[4], HONEST[6]]:
            answers.append(await conversation.handle(message))

    with LoopThread() as loop:
        loop.start(ask())
        act()
        loop.run(asyncio.sleep(0.05))
    assert [answer.kind for answer in answers] == ["hello", "plan", "pass", "seen", "done"]
    assert talked_end.counted.numbers == 2 * 2 * 4
    assert set(answers[2].tensors) == {"inputs", "mask", "parked/q/block"}


@pytest.mark.parametrize("place", [4, 5], ids=["forward", "backward"])
def test_a_lost_step_runs_again_in_a_new_session(tmp_path, place):
    again = [Message(m.kind, {**m.header, "session": "t"} | ({"pass": 2} if "pass" in m.header else {}), m.tensors)
             for m in HONEST]  # fmt: skip
    talked = talk([*HONEST[:place], *again], tmp_path)
    assert talked.end.counted.repeated == 1
    assert talked.modules.finished == 1
    passes = [answer for answer in talked.answers if answer.kind == "pass"]
    assert [answer.header["pass"] for answer in passes] == [1, 2]
    assert len({answer.header["seed"] for answer in passes}) == 1
    assert torch.equal(passes[0].tensors["inputs"], passes[1].tensors["inputs"])
    assert sum(answer.kind == "plan" for answer in talked.answers) == 2


@pytest.mark.parametrize(
    ("place", "message", "words"),
    [
        (3, matrix("columns", (2, 2)), "bytes were expected"),
        (3, matrix("columns", (2, 3), session="x"), "session 'x'"),
        (3, matrix("columns", (2, 3), **{"pass": 2}), "pass 2, not 1"),
        (3, matrix("columns", (2, 3), group="z"), "group 'z'"),
        (
            3,
            Message("columns", HONEST[3].header, {"matrix": torch.full((6,), float("inf")).view(torch.uint8)}),
            "finite",
        ),
        (3, matrix("gradients", (2, 2)), "kind 'gradients'"),
        (3, Message("labels", {"session": "s"}), "kind 'labels'"),
        (5, matrix("gradients", (2, 3)), "bytes were expected"),
        (0, Message("hello", {**HELLO, "protocol": 9}), "protocol 9"),
        (0, Message("hello", {**HELLO, "width": "4"}), "width '4'"),
        (2, Message("refused", {"session": "s", "why": "go away"}), "go away"),
    ],
)
def test_a_cloud_that_breaks_the_protocol_is_refused_by_name(tmp_path, place, message, words):
    with pytest.raises(CutRefused, match=words):
        talk([*HONEST[:place], message, *HONEST[place + 1 :]], tmp_path)


def test_another_base_does_not_continue_a_run(tmp_path):
    other = Message("hello", {**HELLO, "base": "c"})
    with pytest.raises(CutRefused, match="began with m"):
        talk([*HONEST[:4], other], tmp_path)


def test_a_batch_that_no_message_holds_is_refused_here(tmp_path):
    end = DeviceEnd(Conversation(), PartsStore(tmp_path))
    end.modules = Modules()
    with pytest.raises(InputError, match="smaller --batch-size"):
        end.run(torch.zeros(1, 1, 4), torch.ones(2**12, 2**12, dtype=torch.int8))
