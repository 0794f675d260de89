"""Devices that follow a script of messages, for tests of the cloud: no model, no data, no training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.cut.base_parts import BaseParts
from taskedge.cooperation.cut.cloud import Cloud, CloudLimits
from taskedge.cooperation.cut.cloud_base import CloudBase
from taskedge.cooperation.cut.cut_messages import PROTOCOL, as_bytes
from taskedge.cooperation.cut.module_groups import Module, Plan, groups_of, plan_message
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

Change = Callable[[Message, Message], Message]
"""(request, honest answer) -> what is sent."""


def honest(request: Message, answer: Message) -> Message:
    """What an honest device sends."""
    return answer


def a_plan(base: CloudBase) -> Plan:
    """Query and value of the first block, and the last linear."""
    names = ["encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value"]
    rows, columns = torch.tensor([0, 5]), torch.tensor([1, 2, 8])
    plan = {name: Module(name, base.shapes[name], names[0], rows, columns) for name in names}
    last = "encoder.layer.1.output.dense"
    return plan | {last: Module(last, base.shapes[last], last, rows, columns)}


@dataclass
class Scripted:
    """A device that trains nothing: its modules add a tenth of the columns that they read.

    Attributes:
        received: every message of the cloud after joining.
        refused: why the cloud refused it.
    """

    name: str
    plan: Plan
    passes: int = 2
    change: Change = honest
    seed: int = 0
    received: list[Message] = field(default_factory=list)
    refused: str = ""
    session: str = ""
    _said: int = -1

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.hidden = torch.randn(2 * 4, 16, generator=generator)
        self.groups = {group.name: group for group in groups_of(self.plan, list(self.plan))}

    async def handle(self, message: Message) -> Message:
        """Answer one request."""
        if message.kind == "hello":
            self.session = message.header["session"]
            self._said = -1
            return self.change(message, self._say("hello", {"protocol": PROTOCOL, "parts": message.header["parts"]}))
        if message.kind == "refused":
            self.refused = message.header["why"]
            return self._say("bye", {})
        self.received.append(message)
        return self.change(message, self._honest(message))

    def _honest(self, message: Message) -> Message:
        if message.kind == "next":
            self._said += 1
            if self._said == 0:
                return plan_message(self.plan, {"session": self.session})
            if self._said > self.passes:
                return self._say("done", {})
            header = {"pass": self._said, "shape": [2, 4], "coding": "fp32", "trains": True, "seed": self._said}
            tensors = {"inputs": as_bytes(self.hidden, "fp32"), "mask": torch.ones(2, 4, dtype=torch.bool)}
            return self._say("pass", {**header, "active": "1" * len(self.plan)}, tensors)
        number = {"pass": message.header["pass"]}
        if message.kind == "states":
            return self._say("gradient", number, {"matrix": as_bytes(self.hidden.flip(0), "fp32")})
        group = self.groups[message.header["group"]]
        if message.kind == "columns":
            product = torch.full((8, group.num_rows), 0.1)
            return self._say("products", number, {"matrix": as_bytes(product, "fp32")})
        lowest = message.header["group"] == next(iter(self.groups))
        added = {} if lowest else {"matrix": as_bytes(torch.full((8, group.num_columns), 0.1), "fp32")}
        return self._say("input_gradients", number, added)

    def _say(self, kind: str, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Message:
        return Message(kind, {"session": self.session, **header}, tensors or {})

    @property
    def matrices(self) -> list[bytes]:
        """What the cloud sent, without sessions."""
        return [m.tensors["matrix"].numpy().tobytes() for m in self.received if "matrix" in m.tensors]


async def serve(
    base: CloudBase, parts: BaseParts, devices: list[Scripted], limits: CloudLimits | None = None, seconds: float = 20
) -> Cloud:
    """Serve scripted devices until each is done, refused or gone, and return the cloud."""
    link = MemoryCoordinatorLink()
    lines: list[str] = []
    cloud = Cloud(link, base, parts, limits, log=lines.append)
    cloud.lines = lines  # type: ignore[attr-defined]
    serving = asyncio.create_task(cloud.serve())
    ends = [(device, link.device(device.name)) for device in devices]
    tasks = [asyncio.create_task(end.serve(device.handle)) for device, end in ends]
    async with asyncio.timeout(seconds):
        await asyncio.sleep(0.01)
        while cloud.sessions:
            await asyncio.sleep(0.01)
    for task in (serving, *tasks):
        task.cancel()
    await asyncio.gather(serving, *tasks, return_exceptions=True)
    return cloud
