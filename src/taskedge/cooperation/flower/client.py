"""A taskedge device as a Flower ``ClientApp``.

    app = client_app(lambda context: NodeSetup(LocalTraining(model, rows, collate), labels))

Flower may start a new process for every message. The device's state in a run (support and values) is therefore kept in
Flower's context, which never leaves the node, and restored from it in a new process.
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
_INSTALL, _VALUES = "taskedge.install", "taskedge.kept"


@dataclass(frozen=True)
class NodeSetup:
    """The part of a node in a run. The fields are arguments of :class:`taskedge.cooperation.device.device.Device`."""

    training: LocalTraining
    labels: tuple[str, ...] = ()
    profile: Profile | None = None
    memory_bytes: float | None = None


def client_app(make: Callable[[Context], NodeSetup], *, warm: int = 1) -> ClientApp:
    """Return an app that answers :class:`taskedge.cooperation.flower.strategy.TaskEdgeStrategy`.

    Args:
        make: Loads model and rows of the node of a context. Called in a new process, and for a node whose device is
            not loaded.
        warm: Number of devices to keep loaded, if one process serves several nodes.
    """
    devices: OrderedDict[int, Device] = OrderedDict()

    def device_of(context: Context) -> Device:
        device = devices.pop(context.node_id, None)
        if device is None:
            while len(devices) >= warm:
                devices.popitem(last=False)
            setup = make(context)
            device = Device(
                None, setup.training, profile=setup.profile, labels=setup.labels, memory_bytes=setup.memory_bytes
            )
        devices[context.node_id] = device
        return device

    def reply(flower_message: FlowerMessage, context: Context) -> FlowerMessage:
        message, device = from_content(flower_message.content), device_of(context)
        answer = asyncio.run(_answer(device, message, context.state))
        if message.kind == "hello":
            header = {**answer.header, NAME: str(context.node_config.get(NAME, ""))}
            answer = Message(answer.kind, header)
        return FlowerMessage(to_content(answer), reply_to=flower_message)

    app = ClientApp()
    app.query()(reply)
    app.train()(reply)
    return app


async def _answer(device: Device, message: Message, state: RecordDict) -> Message:
    """Return the device's answer. Its state is restored from ``state`` before and written there afterwards."""
    stored = from_content(state, _VALUES) if _VALUES in state else None
    if stored is not None and device.run_version != (stored.header["run"], stored.header["version"]):
        await device.restore(from_content(state, _INSTALL), stored)
    answer = await device.answer(message, arrived=time.monotonic())
    if answer.kind == "installed":
        state[_INSTALL] = packed_record(message.pack())
    values = device.values_message()
    if values is not None:
        state[_VALUES] = packed_record(values.pack())
    else:
        for record in (_INSTALL, _VALUES):
            state.pop(record, None)
    return answer
