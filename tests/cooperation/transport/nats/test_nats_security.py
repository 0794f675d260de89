"""What a device's key cannot do, and who cannot connect: bare clients against a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import threading
from contextlib import suppress

import pytest

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

import nats
from linked_fleets import SECONDS, echo, over_nats, started

from taskedge.cooperation.fleet import certificates
from taskedge.cooperation.fleet.bundle import Bundle
from taskedge.cooperation.protocol.chunking import parts
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.transport.links import NoAnswer
from taskedge.cooperation.transport.nats.nats_links import NatsCoordinatorLink, NatsDeviceLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.errors import InputError


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    fleet, server = started(tmp_path_factory.mktemp("security") / "fleet", "edge0", "edge1")
    yield fleet
    server.stop()


def of(fleet, name) -> Bundle:
    return Bundle.open(fleet.folder / "devices" / name)


class Bare:
    """A client that does what it likes with a device's key."""

    def __init__(self, bundle: Bundle, tls: ssl.SSLContext | None = None) -> None:
        self.bundle, self.tls = bundle, tls or bundle.tls()
        self.heard: list[nats.aio.msg.Msg] = []
        self.errors: list[str] = []

    async def __aenter__(self):
        async def error(trouble):
            self.errors.append(str(trouble))

        self.client = nats.aio.client.Client()
        await self.client.connect(
            self.bundle.server, tls=self.tls, tls_handshake_first=True, allow_reconnect=False, error_cb=error
        )
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    async def hear(self, subject):
        async def hears(message):
            self.heard.append(message)

        await self.client.subscribe(subject, cb=hears)
        await self.client.flush()

    async def say(self, subject, data=b"x", reply=""):
        await self.client.publish(subject, data, reply=reply)
        await self.client.flush()

    async def here(self):
        facts = {"process": "p", "connection": self.client.client_id}
        await self.say(f"taskedge.up.{self.bundle.name}.here", json.dumps(facts).encode())


def test_a_device_cannot_hear_what_is_not_for_it(fleet):
    async def run():
        async with over_nats(fleet) as around, Bare(of(fleet, "edge1")) as spy:
            subjects = ["taskedge.task.edge0", "taskedge.task.*", "taskedge.up.edge0.>", "taskedge.>", ">", "*.*.*"]
            subjects += ["_INBOX.>", "$SYS.>", "$SYS.ACCOUNT.FLEET.DISCONNECT", "taskedge.up.edge1.>"]
            for subject in subjects:
                await spy.hear(subject)
            link = around.device("edge0")
            await around.hears(("edge0", "joined"))
            await link.say(Message("profile"))
            await around.coordinator.ask("edge0", Message("task"), SECONDS)
            await link.close()
            await spy.client.flush()
            assert len([error for error in spy.errors if "permissions violation for subscription" in error]) == len(
                subjects
            )
            assert not spy.heard

    asyncio.run(run())


def test_a_device_cannot_speak_for_another_nor_as_the_coordinator(fleet):
    async def run():
        asked = []

        async def answer(message):
            asked.append(message)
            return await echo(message)

        async with over_nats(fleet) as around, Bare(of(fleet, "edge1")) as forger:
            around.device("edge0", answer)
            await around.hears(("edge0", "joined"))
            whole = next(parts(Message("task").pack()))
            subjects = ["taskedge.up.edge0.here", "taskedge.up.edge0.say.1", "taskedge.up.edge0.answer.1"]
            subjects += ["taskedge.task.edge0", "taskedge.task.edge1", "taskedge.who", "taskedge.up.edge2.here"]
            subjects += ["$SYS.ACCOUNT.FLEET.DISCONNECT", "$SYS.REQ.SERVER.PING", "_INBOX.x", "taskedge.up"]
            for subject in subjects:
                await forger.say(subject, whole, reply="taskedge.up.edge1.answer.1")
            violations = [error for error in forger.errors if "permissions violation for publish" in error]
            assert len(violations) == len(subjects)
            await around.hears_nothing(0.2)
            await around.coordinator.ask("edge0", Message("probe"), SECONDS)
            assert [message.kind for message in asked] == ["probe"]
            assert not around.coordinator.traffic("edge2")[1].bytes

    asyncio.run(run())


def test_an_answer_of_another_device_is_not_taken(fleet):
    """Even one that guessed which answer is waited for: it can only say so under its own name."""

    async def run():
        async with over_nats(fleet) as around, Bare(of(fleet, "edge0")) as asked, Bare(of(fleet, "edge1")) as forger:
            await asked.hear("taskedge.task.edge0")
            await asked.here()
            await around.hears(("edge0", "joined"))
            waiting = asyncio.create_task(around.coordinator.ask("edge0", Message("task"), 0.5))
            while not asked.heard:
                await asyncio.sleep(0.01)
            forged = asked.heard[0].reply.replace("edge0", "edge1")
            await forger.say(forged, next(parts(Message("forged").pack())))
            with pytest.raises(NoAnswer):
                await waiting
            assert around.coordinator.traffic("edge1")[1].messages == {"late": 1}

    asyncio.run(run())


def bad_answers() -> dict[str, list[bytes]]:
    good = list(parts(Message("answer", {"x": "y" * 100}).pack(), 40))
    damaged = good[-1][:-1] + bytes([good[-1][-1] ^ 1])
    oversize = good[0][:11] + (65 * 2**20).to_bytes(8, "little") + good[0][19:]
    return {
        "out of order": [good[0], good[2]],
        "repeated": [good[0], good[1], good[1]],
        "the first is missing": [good[1]],
        "damaged": [*good[:-1], damaged],
        "announces too much": [oversize],
        "no part": [b"noise"],
        "pickle": [next(parts(b"\x80\x04cos\nsystem\n."))],
    }


@pytest.mark.parametrize("how", bad_answers())
def test_a_bad_answer_is_refused_and_the_next_is_taken(fleet, how):
    async def run():
        async with over_nats(fleet) as around, Bare(of(fleet, "edge0")) as device:
            await device.hear("taskedge.task.edge0")
            await device.here()
            await around.hears(("edge0", "joined"))
            for answers in (bad_answers()[how], list(parts(Message("answer").pack(), 10))):
                device.heard.clear()
                waiting = asyncio.create_task(around.coordinator.ask("edge0", Message("task"), SECONDS))
                while not device.heard:
                    await asyncio.sleep(0.01)
                for part in answers:
                    await device.say(device.heard[0].reply, part)
                if answers == bad_answers()[how]:
                    with pytest.raises(MessageError):
                        await waiting
                    assert around.coordinator.traffic("edge0")[1].messages["refused"] == 1
                else:
                    assert (await waiting).kind == "answer"

    asyncio.run(run())


def test_what_nobody_heard_is_sent_again(fleet):
    """A device that is coming back has said that it is there, and is asked before it hears its tasks."""

    async def run():
        async with over_nats(fleet) as around, Bare(of(fleet, "edge0")) as device:
            await device.here()
            await around.hears(("edge0", "joined"))
            waiting = asyncio.create_task(around.coordinator.ask("edge0", Message("task"), SECONDS))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await device.hear("taskedge.task.edge0")
            await device.here()
            while not device.heard:
                await asyncio.sleep(0.01)
            await device.say(device.heard[0].reply, next(parts(Message("answer").pack())))
            assert (await waiting).kind == "answer"

    asyncio.run(run())


def test_a_replaced_connection_that_ends_late_takes_nobody_along(fleet):
    async def run():
        async with over_nats(fleet) as around:
            first = await Bare(of(fleet, "edge0")).__aenter__()
            await first.here()
            await around.hears(("edge0", "joined"))
            async with Bare(of(fleet, "edge0")) as second:  # the same process, over a new connection
                await second.here()
                async with asyncio.timeout(SECONDS):  # nothing orders what comes from two connections
                    while around.coordinator._seen["edge0"].connection != second.client.client_id:
                        await asyncio.sleep(0.01)
                await first.client.close()
                await around.hears_nothing(0.3)
            await around.hears(("edge0", "left"))

    asyncio.run(run())


def test_a_device_that_falls_silent_is_gone(fleet, monkeypatch):
    """As when a line is cut: its connection has not ended, for all that the server knows."""
    monkeypatch.setattr("taskedge.cooperation.transport.nats.nats_links.HERE_SECONDS", 0.3)
    monkeypatch.setattr("taskedge.cooperation.transport.nats.nats_links.GONE_SECONDS", 1.0)

    async def run():
        async with over_nats(fleet) as around, Bare(of(fleet, "edge0")) as silent:
            around.device("edge1")
            await silent.here()
            await around.hears(("edge0", "joined"), ("edge1", "joined"))
            await around.hears(("edge0", "left"))
            await around.hears_nothing(1.2)  # who gives signs of life stays
            await silent.here()
            await around.hears(("edge0", "joined"))

    asyncio.run(run())


def test_who_cannot_connect(fleet, tmp_path):
    ca = fleet._authority()
    strangers = {
        "not enrolled": (ca, certificates.client(ca, "edge9")),
        "an enrolled name, another certificate": (ca, certificates.client(ca, "edge0")),
        "the server's own": (ca, certificates.server(ca, [])),
    }
    other = certificates.authority("other")
    strangers["another authority"] = (ca, certificates.client(other, "edge0"))

    async def refused(tls):
        with pytest.raises((nats.errors.Error, OSError)):
            async with Bare(of(fleet, "edge0"), tls) as client:
                await client.here()

    async def run():
        for name, (authority, identity) in strangers.items():
            bundle = Bundle.write(
                tmp_path / name,
                fleet="f",
                name="edge0",
                server=of(fleet, "edge0").server,
                identity=identity,
                ca=authority.certificate,
            )
            await refused(bundle.tls())
        await refused(ssl.create_default_context(cafile=str(fleet.folder / "authority.pem")))  # no certificate at all
        async with Bare(of(fleet, "edge0")) as enrolled:
            await enrolled.here()
            assert not enrolled.errors

    asyncio.run(run())


def test_plain_text_is_refused(fleet):
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=SECONDS) as plain:
        plain.sendall(b'CONNECT {"verbose":false}\r\nPUB taskedge.up.edge0.here 1\r\nx\r\nPING\r\n')
        answer = b""
        with suppress(ConnectionResetError):
            while received := plain.recv(4096):
                answer += received
    assert b"INFO" not in answer  # the server does not even say what it is
    assert b"PONG" not in answer


def test_a_server_that_would_talk_plain_text_learns_nothing(fleet, tmp_path):
    """Whoever sits between cannot talk a device out of TLS."""
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
        bundle = elsewhere(fleet, tmp_path / "edge0", listening.getsockname()[1])
        trouble = asyncio.run(tried(bundle))
        thread.join()
    assert trouble
    assert b"CONNECT" not in received
    assert b"edge0" not in received


def test_a_device_cannot_play_the_server(fleet, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = of(fleet, "edge1").folder
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    async def run():
        said = []

        async def serve(reader, writer):
            said.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        bundle = elsewhere(fleet, tmp_path / "edge0", server.sockets[0].getsockname()[1])
        trouble = await tried(bundle)
        server.close()
        assert "certificate verify failed" in trouble
        assert not said

    asyncio.run(run())


def elsewhere(fleet, folder, port):
    """A copy of edge0's bundle that names another server."""
    shutil.copytree(of(fleet, "edge0").folder, folder)
    facts = json.loads((folder / "fleet.json").read_text())
    (folder / "fleet.json").write_text(json.dumps(facts | {"server": f"tls://127.0.0.1:{port}"}))
    return folder


async def tried(bundle) -> str:
    """What a device's link met with."""
    link = NatsDeviceLink(bundle)
    serving = asyncio.create_task(link.serve(echo))
    async with asyncio.timeout(SECONDS):
        while link.trouble is None:
            await asyncio.sleep(0.01)
    trouble = link.trouble
    serving.cancel()
    await link.close()
    return trouble


def test_a_server_that_is_not_there_is_said(fleet, tmp_path):
    bundle = elsewhere(fleet, tmp_path / "edge0", free_port())
    with pytest.raises(InputError, match=r"no connection to the server .*127\.0\.0\.1.*is it running"):
        asyncio.run(NatsCoordinatorLink.connect(bundle, seconds=0.3))
