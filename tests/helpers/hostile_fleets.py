"""Runs over a real server in which some devices, with valid keys of their own, send what they like."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny_fleet
from linked_fleets import started

from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.protocol.message import MAGIC, Message
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink


class RawHeader(Message):
    """A message whose header is any text; its tensors are those of ``like``."""

    def __init__(self, like: Message, header: str) -> None:
        super().__init__(like.kind, like.header, like.tensors)
        object.__setattr__(self, "text", header)

    def pack(self) -> bytes:
        packed = Message(self.kind, {}, self.tensors).pack()
        tensors = packed[7 + int.from_bytes(packed[3:7], "little") :]
        header = self.text.encode()
        return MAGIC + len(header).to_bytes(4, "little") + header + tensors


def run_over_nats(
    folder: Path,
    settings: Any,
    trainings: Mapping[str, Any],
    changes: Mapping[str, tiny_fleet.Change],
    *,
    resume: bool = False,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    **more: Any,
) -> tuple[Coordinator, Any, list[dict[str, Any]]]:
    """A whole run: (coordinator, result, events). ``changes`` and ``about`` are by device, as in ``tiny_fleet``."""
    registry, server = started(folder / f"fleet-{int(resume)}", *trainings)
    events: list[dict[str, Any]] = []

    async def whole():
        serving = []
        for name, training in trainings.items():
            link = NatsDeviceLink(registry.folder / "devices" / name)
            end = tiny_fleet.Changed(link, changes.get(name, tiny_fleet.unchanged))
            device = Device(end, training, **(about or {}).get(name, {}))
            serving.append(asyncio.create_task(device.serve(stay=True)))
        link = await NatsCoordinatorLink.connect(registry.coordinator_bundle)
        try:
            head = Coordinator(link, tiny_fleet.model(), settings, folder / "run", on_event=events.append, **more)
            return head, await head.run(resume=resume)
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await link.close()

    try:
        head, result = asyncio.run(whole())
    finally:
        server.stop()
    return head, result, events


def of(events: list[dict[str, Any]], event: str, device: str | None = None) -> list[dict[str, Any]]:
    """The events of one kind, of one device."""
    return [line for line in events if line["event"] == event and device in (None, line.get("device"))]
