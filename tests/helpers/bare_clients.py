"""Clients of a fleet's server that ignore the protocol, with a device's key."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from pathlib import Path

import nats
from linked_fleets import SECONDS, echo

from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.transport.nats.bundle import Bundle
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink


def bundle_of(fleet: DeviceRegistry, name: str) -> Bundle:
    return Bundle.open(fleet.folder / "devices" / name)


class BareClient:
    """A client that publishes and subscribes as it likes."""

    def __init__(self, bundle: Bundle, tls: ssl.SSLContext | None = None) -> None:
        self.bundle, self.tls = bundle, tls or bundle.tls()
        self.received: list[nats.aio.msg.Msg] = []
        self.errors: list[str] = []

    async def __aenter__(self) -> BareClient:
        async def on_error(error):
            self.errors.append(str(error))

        self.client = nats.aio.client.Client()
        await self.client.connect(
            self.bundle.server, tls=self.tls, tls_handshake_first=True, allow_reconnect=False, error_cb=on_error
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def subscribe(self, subject: str) -> None:
        async def on_message(message):
            self.received.append(message)

        await self.client.subscribe(subject, cb=on_message)
        await self.client.flush()

    async def publish(self, subject: str, data: bytes = b"x", reply: str = "") -> None:
        await self.client.publish(subject, data, reply=reply)
        await self.client.flush()

    async def report(self) -> None:
        """Report as the device does every two seconds."""
        fields = {"process": "p", "connection": self.client.client_id}
        await self.publish(f"taskedge.up.{self.bundle.name}.here", json.dumps(fields).encode())

    async def violations(self, of: str, count: int) -> None:
        """Wait for ``count`` permission violations, which the client reports in the background."""
        async with asyncio.timeout(SECONDS):
            while sum(f"permissions violation for {of}" in error for error in self.errors) < count:
                await asyncio.sleep(0.01)
        assert sum(f"permissions violation for {of}" in error for error in self.errors) == count

    async def received_some(self, count: int = 1) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.received) < count:
                await asyncio.sleep(0.01)


def with_other_server(fleet: DeviceRegistry, folder: Path, port: int) -> Path:
    """A copy of edge0's bundle that names another server."""
    shutil.copytree(bundle_of(fleet, "edge0").folder, folder)
    fields = json.loads((folder / "fleet.json").read_text())
    (folder / "fleet.json").write_text(json.dumps(fields | {"server": f"tls://127.0.0.1:{port}"}))
    return folder


async def first_trouble(bundle: Path) -> str:
    """The first error that a device's link meets."""
    link = NatsDeviceLink(bundle)
    serving = asyncio.create_task(link.serve(echo))
    async with asyncio.timeout(SECONDS):
        while link.trouble is None:
            await asyncio.sleep(0.01)
    trouble = link.trouble
    serving.cancel()
    await link.close()
    return trouble
