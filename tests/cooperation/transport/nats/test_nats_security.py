"""Limits of a device's key, and who cannot connect: bare clients against a real server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import suppress

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

import nats
from bare_clients import BareClient, bundle_of, first_trouble, with_other_server
from linked_fleets import SECONDS, echo, over_nats, started

from taskedge.cooperation.fleet import certificates
from taskedge.cooperation.protocol.chunking import split_message
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.nats.bundle import Bundle


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("security") / "fleet", "edge0", "edge1")
    yield fleet
    server.stop()


def test_a_device_cannot_subscribe_to_other_subjects(fleet):
    async def run():
        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as spy:
            subjects = ["taskedge.task.edge0", "taskedge.task.*", "taskedge.up.edge0.>", "taskedge.>", ">", "*.*.*"]
            subjects += ["_INBOX.>", "$SYS.>", "$SYS.ACCOUNT.FLEET.DISCONNECT", "taskedge.up.edge1.>"]
            for subject in subjects:
                await spy.subscribe(subject)
            link = around.device("edge0")
            await around.hears(("edge0", "joined"))
            await around.coordinator.request("edge0", Message("task"), SECONDS)
            await link.close()
            await spy.client.flush()
            await spy.violations("subscription", len(subjects))
            assert not spy.received

    asyncio.run(run())


def test_a_device_cannot_publish_as_another_or_as_the_coordinator(fleet):
    async def run():
        received = []

        async def answer(message):
            received.append(message)
            return await echo(message)

        async with over_nats(fleet) as around, BareClient(bundle_of(fleet, "edge1")) as forger:
            around.device("edge0", answer)
            await around.hears(("edge0", "joined"))
            chunk = next(split_message(Message("task").pack()))
            subjects = ["taskedge.up.edge0.here", "taskedge.up.edge1.say.1", "taskedge.up.edge0.answer.1"]
            subjects += ["taskedge.task.edge0", "taskedge.task.edge1", "taskedge.who", "taskedge.up.edge2.here"]
            subjects += ["$SYS.ACCOUNT.FLEET.DISCONNECT", "$SYS.REQ.SERVER.PING", "_INBOX.x", "taskedge.up"]
            for subject in subjects:
                await forger.publish(subject, chunk, reply="taskedge.up.edge1.answer.1")
            await forger.violations("publish", len(subjects))
            await around.hears_nothing(0.2)
            await around.coordinator.request("edge0", Message("probe"), SECONDS)
            assert [message.kind for message in received] == ["probe"]
            assert not around.coordinator.traffic("edge2")[1].bytes

    asyncio.run(run())


def test_who_cannot_connect(fleet, tmp_path):
    ca = fleet._authority()
    strangers = {
        "not enrolled": (ca, certificates.create_client_identity(ca, "edge9")),
        "an enrolled name, another certificate": (ca, certificates.create_client_identity(ca, "edge0")),
        "the server's own": (ca, certificates.create_server_identity(ca, [])),
    }
    other = certificates.create_authority("other")
    strangers["another authority"] = (ca, certificates.create_client_identity(other, "edge0"))

    async def refused(tls):
        with pytest.raises((nats.errors.Error, OSError)):
            async with BareClient(bundle_of(fleet, "edge0"), tls) as client:
                await client.report()

    async def run():
        for name, (authority, identity) in strangers.items():
            bundle = Bundle.write(
                tmp_path / name,
                fleet="f",
                name="edge0",
                server=bundle_of(fleet, "edge0").server,
                key=identity.key,
                certificate=identity.certificate,
                authority=authority.certificate,
            )
            await refused(bundle.tls())
        await refused(ssl.create_default_context(cafile=str(fleet.folder / "authority.pem")))  # no certificate at all
        async with BareClient(bundle_of(fleet, "edge0")) as enrolled:
            await enrolled.report()
            assert not enrolled.errors

    asyncio.run(run())


def test_plain_text_is_refused(fleet):
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=SECONDS) as plain:
        plain.sendall(b'CONNECT {"verbose":false}\r\nPUB taskedge.up.edge0.here 1\r\nx\r\nPING\r\n')
        answer = b""
        with suppress(ConnectionResetError):
            while received := plain.recv(4096):
                answer += received
    assert b"INFO" not in answer  # the server does not even identify itself
    assert b"PONG" not in answer


def test_a_server_without_tls_learns_nothing(fleet, tmp_path):
    """A man in the middle cannot make a device skip TLS."""
    received = b""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            nonlocal received
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.sendall(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576}\r\n')
                received = connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        bundle = with_other_server(fleet, tmp_path / "edge0", listening.getsockname()[1])
        trouble = asyncio.run(first_trouble(bundle))
        thread.join()
    assert trouble
    assert b"CONNECT" not in received
    assert b"edge0" not in received


def test_a_device_cannot_act_as_the_server(fleet, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = bundle_of(fleet, "edge1").folder
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    async def run():
        received = []

        async def serve(reader, writer):
            received.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        bundle = with_other_server(fleet, tmp_path / "edge0", server.sockets[0].getsockname()[1])
        trouble = await first_trouble(bundle)
        server.close()
        assert "certificate verify failed" in trouble
        assert not received

    asyncio.run(run())
