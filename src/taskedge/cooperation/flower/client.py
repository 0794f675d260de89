"""Our device as a Flower ``ClientApp``.

    app = client_app(lambda context: Part(LocalTraining(model, rows, collate), labels))

Flower may start a process for every message. So what a device holds of a run (its support and values) is kept in
Flower's context, which never leaves the node, and taken up again where the process is a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.flower.records import from_content, packed_record, to_content
from taskedge.cooperation.protocol.message import Message
from taskedge.profiling.profile_file import Profile

NAME = "name"
"""Key of the node's configuration (``--node-config 'name="jetson-1"'``): the device's name in logs and fleet files."""
_INSTALL, _KEPT = "taskedge.install", "taskedge.kept"


@dataclass(frozen=True)
class Part:
    """What a node brings into a run; the fields are arguments of :class:`taskedge.cooperation.device.device.Device`."""

    training: LocalTraining
    labels: tuple[str, ...] = ()
    profile: Profile | None = None
    memory_bytes: float | None = None


def client_app(make: Callable[[Context], Part], *, warm: int = 1) -> ClientApp:
    """An app that answers what :class:`taskedge.cooperation.flower.strategy.TaskEdgeStrategy` asks.

    Args:
        make: called in a new process, and for a node whose device is not warm: loads model and rows of the node that
            the context is of.
        warm: how many nodes' devices to keep loaded, where one process plays several nodes.
    """
    devices: OrderedDict[int, Device] = OrderedDict()

    def device_of(context: Context) -> Device:
        device = devices.pop(context.node_id, None)
        if device is None:
            while len(devices) >= warm:
                devices.popitem(last=False)
            part = make(context)
            device = Device(
                None, part.training, profile=part.profile, labels=part.labels, memory_bytes=part.memory_bytes
            )
        devices[context.node_id] = device
        return device

    def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
        asked, device = from_content(message.content), device_of(context)
        answered = asyncio.run(_answer(device, asked, context.state))
        if asked.kind == "hello":
            facts = {**answered.facts, NAME: str(context.node_config.get(NAME, ""))}
            answered = Message(answered.kind, facts)
        return FlowerMessage(to_content(answered), reply_to=message)

    app = ClientApp()
    app.query()(answer)
    app.train()(answer)
    return app


async def _answer(device: Device, asked: Message, state: RecordDict) -> Message:
    """The device's answer; what it holds is as the state says before, and written there after."""
    before = from_content(state, _KEPT) if _KEPT in state else None
    if before is not None and device.holds != (before.facts["run"], before.facts["version"]):
        await device.restore(from_content(state, _INSTALL), before)
    answered = await device.answer(asked, arrived=time.monotonic())
    if answered.kind == "installed":
        state[_INSTALL] = packed_record(asked.pack())
    kept = device.kept()
    if kept is not None:
        state[_KEPT] = packed_record(kept.pack())
    else:
        for record in (_INSTALL, _KEPT):
            state.pop(record, None)
    return answered
