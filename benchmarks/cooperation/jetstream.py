"""JetStream in place of what the links over NATS do themselves: large messages, tasks, presence.

    python -m benchmarks.cooperation.jetstream    # a minute

The first two questions are asked on a server without TLS, so that only the two ways differ; coordinator and device are
two connections of one process. *Chunks* is what the links do: pieces of 1 MiB, a round trip after each, SHA-256 over
the whole. *Object store* puts a message once and gets it once for each reader. *Request* is a task on a device's
subject and an answer on the subject that it names. *Work queue* is a stream with one consumer for each device, which
fetches a task, answers by a plain message, and acknowledges. Presence is asked with the real link and its TLS: how long
after a device's process was killed the coordinator knows, beside a key that expires and leaves a marker for watchers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nats
import psutil
from nats.js import api
from nats.js.errors import NotFoundError

from benchmarks.record import figure, machine, show, write
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.protocol.chunking import ChunkAssembler, split_message
from taskedge.cooperation.transport.nats.connection import HERE_SECONDS
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import find_server, free_port

RESULTS = ("jetstream.json",)
MEGABYTE = 2**20
SIZES = {"0.1 MB": 10**5, "4 MB": 4 * MEGABYTE, "32 MB": 32 * MEGABYTE}
TO_MANY = 10**5
"""Bytes up to which a message is also sent to many readers."""
REPEATS = {"0.1 MB": 30, "4 MB": 4, "32 MB": 2}
READERS = 20
DEVICES, ROUNDS, DOWN, UP = 8, 60, 10**5, 3 * 10**4
REPORTS = 3000
MISSED = 5
KILLS = 5
KEY_SECONDS = 6.0
"""Time of a key: as long as the server's pings take to notice a cut line."""

Figures = list[dict[str, Any]]


class Server:
    """A server with JetStream and no TLS."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        config = {"port": port, "host": "127.0.0.1", "max_payload": 2 * MEGABYTE}
        config |= {"jetstream": {"store_dir": str(folder / "store"), "max_mem": 2**30, "max_file": 2**30}}
        (folder / "server.conf").write_text(json.dumps(config))
        words = [str(find_server()), "-c", str(folder / "server.conf")]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.address = f"nats://127.0.0.1:{port}"

    def busy(self) -> float:
        """Processor seconds so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    async def client(self) -> Any:
        for _ in range(100):
            try:
                return await nats.connect(self.address, pending_size=256 * MEGABYTE)
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.1)
        raise RuntimeError("the server did not start")


async def send_chunks(client: Any, subject: str, packed: bytes) -> None:
    for chunk in split_message(packed):
        await client.publish(subject, chunk)
        await client.flush()


def receiver(done: asyncio.Queue[bytes]) -> Callable[[Any], Awaitable[None]]:
    assembler = ChunkAssembler()

    async def take(message: Any) -> None:
        packed = assembler.add(message.data)
        if packed is not None:
            done.put_nowait(packed)

    return take


async def large_messages(server: Server) -> Figures:
    """Seconds until one reader has a message, and processor time of both ends and of the server."""
    sender, reader = await server.client(), await server.client()
    stores = {}
    for storage in (api.StorageType.MEMORY, api.StorageType.FILE):
        bucket = f"objects-{storage.value}"
        await sender.jetstream().create_object_store(bucket, api.ObjectStoreConfig(storage=storage))
        stores[storage.value] = (
            await sender.jetstream().object_store(bucket),
            await reader.jetstream().object_store(bucket),
        )
    done: asyncio.Queue[bytes] = asyncio.Queue()
    await reader.subscribe("large", cb=receiver(done))
    await reader.flush()

    async def chunks(packed: bytes, readers: int) -> None:
        for _ in range(readers):
            await send_chunks(sender, "large", packed)
            assert await done.get() == packed

    def store(name: str) -> Callable[[bytes, int], Awaitable[None]]:
        at_sender, at_reader = stores[name]

        async def through(packed: bytes, readers: int) -> None:
            await at_sender.put("message", packed)
            for _ in range(readers):
                assert (await at_reader.get("message")).data == packed

        return through

    ways = {"chunks": chunks, "object store in memory": store("memory"), "object store on disk": store("file")}
    figures = []
    for size, num_bytes in SIZES.items():
        for readers in (1, READERS) if num_bytes <= TO_MANY else (1,):
            for way, carry in ways.items():
                walls, busy, at_server = [], [], []
                for _ in range(max(2, REPEATS[size] // readers)):
                    packed = os.urandom(num_bytes)
                    before = time.perf_counter(), time.process_time(), server.busy()
                    await carry(packed, readers)
                    walls.append(1000 * (time.perf_counter() - before[0]))
                    busy.append(1000 * (time.process_time() - before[1]))
                    at_server.append(1000 * (server.busy() - before[2]))
                what = f"{size} to {readers} reader{'s' * (readers > 1)}, {way}"
                figures.append(figure(f"{what}: wall time", walls, unit="ms"))
                figures.append(figure(f"{what}: both ends, processor", busy, unit="ms"))
                figures.append(figure(f"{what}: server, processor", [sum(at_server) / len(at_server)], unit="ms"))
    await sender.close()
    await reader.close()
    return figures


async def tasks(server: Server) -> Figures:
    """A round of tasks and answers, and what a device gets that was away while tasks expired."""
    coordinator, fleet = await server.client(), [await server.client() for _ in range(DEVICES)]
    stream, down, up = coordinator.jetstream(), os.urandom(DOWN), os.urandom(UP)
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def on_answer(message: Any) -> None:
        answers.put_nowait(message.data)

    await coordinator.subscribe("up.>", cb=on_answer)
    for number, device in enumerate(fleet):

        async def on_task(message: Any, device: Any = device, number: int = number) -> None:
            await device.publish(f"up.{number}", up)

        await device.subscribe(f"task.{number}", cb=on_task)
        await device.flush()

    async def requests() -> None:
        await asyncio.gather(*(send_chunks(coordinator, f"task.{number}", down) for number in range(DEVICES)))
        for _ in range(DEVICES):
            await answers.get()

    figures = await time_rounds(server, "request", requests)
    for storage in (api.StorageType.MEMORY, api.StorageType.FILE):
        name = f"queue-{storage.value}"
        kept = api.StreamConfig(name, subjects=[f"{name}.*"], retention=api.RetentionPolicy.WORK_QUEUE, storage=storage)
        await stream.add_stream(kept)

        async def work(number: int, device: Any, name: str = name) -> None:
            consumer = await device.jetstream().pull_subscribe(f"{name}.{number}", durable=f"d{number}", stream=name)
            while True:
                try:
                    (message,) = await consumer.fetch(1, timeout=30)
                except TimeoutError:
                    continue
                await device.publish(f"up.{number}", up)
                await message.ack()

        working = [asyncio.create_task(work(number, device)) for number, device in enumerate(fleet)]
        await asyncio.sleep(0.5)

        async def queued(name: str = name) -> None:
            await asyncio.gather(*(stream.publish(f"{name}.{number}", down) for number in range(DEVICES)))
            for _ in range(DEVICES):
                await answers.get()

        figures += await time_rounds(server, f"work queue, {storage.value}", queued)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    figures.append(await missed_in_queue(server, stream))
    for client in (coordinator, *fleet):
        await client.close()
    return figures


async def time_rounds(server: Server, way: str, one_round: Callable[[], Awaitable[None]]) -> Figures:
    walls, before = [], 0.0
    for number in range(-5, ROUNDS):
        if number == 0:
            before = server.busy()
        begun = time.perf_counter()
        await one_round()
        if number >= 0:
            walls.append(1000 * (time.perf_counter() - begun))
    at_server = 1000 * (server.busy() - before) / ROUNDS
    what = f"round of {DEVICES} devices, {way}"
    return [
        figure(f"{what}: wall time", walls, unit="ms"),
        figure(f"{what}: server, processor", [at_server], unit="ms"),
    ]


async def missed_in_queue(server: Server, stream: Any) -> dict[str, Any]:
    """Tasks of rounds that are over, which a device gets that was away meanwhile."""
    await stream.add_stream(name="missed", subjects=["missed.*"], retention=api.RetentionPolicy.WORK_QUEUE)
    consumer = await stream.pull_subscribe("missed.0", durable="d0", stream="missed")  # then the device is cut off
    for _ in range(MISSED):
        await stream.publish("missed.0", b"a task that nobody waits for any more")
    found = len(await consumer.fetch(MISSED, timeout=2))
    return figure(f"tasks of {MISSED} rounds that are over, given to a device that comes back, work queue", [found])


async def reports(server: Server) -> Figures:
    """What reports that a device is there cost the server."""
    device = await server.client()
    body = json.dumps({"process": "0" * 16, "connection": 7}).encode()
    held = await device.jetstream().create_key_value(bucket="there", ttl=KEY_SECONDS, storage=api.StorageType.MEMORY)
    figures = []
    before, begun = server.busy(), time.process_time()
    for _ in range(REPORTS):
        await device.publish("up.0.here", body)
    await device.flush()
    plain = server.busy() - before, time.process_time() - begun
    before, begun = server.busy(), time.process_time()
    for _ in range(REPORTS):
        await held.put("d0", body)
    keys = server.busy() - before, time.process_time() - begun
    for way, (at_server, at_device) in {"message": plain, "key-value put": keys}.items():
        figures.append(figure(f"report, {way}: server, processor", [1e6 * at_server / REPORTS], unit="us"))
        figures.append(figure(f"report, {way}: device, processor", [1e6 * at_device / REPORTS], unit="us"))
    await device.close()
    return figures


async def expired_keys(server: Server) -> Figures:
    """Seconds until a watcher hears of a key that was not renewed."""
    client = await server.client()
    config = api.KeyValueConfig("gone", ttl=KEY_SECONDS, limit_marker_ttl=60, storage=api.StorageType.MEMORY)
    held = await client.jetstream().create_key_value(config)
    watch = await held.watchall()
    put: dict[str, float] = {}
    for number in range(KILLS):
        put[f"d{number}"] = time.perf_counter()
        await held.put(f"d{number}", b"here")
        await asyncio.sleep(HERE_SECONDS / KILLS)
    seconds: list[float] = []
    async with asyncio.timeout(60):
        while len(seconds) < KILLS:
            try:
                entry = await watch.updates(timeout=30)
            except (TimeoutError, NotFoundError):
                break
            if entry is not None and entry.operation is not None:
                seconds.append(time.perf_counter() - put[entry.key])
    await client.close()
    return [figure("killed process is noticed, key that expires", seconds, unit="s")] if seconds else []


def be_device(bundle: Path) -> None:
    async def serve() -> None:
        async def answer(message: Any) -> Any:
            return message

        await NatsDeviceLink(bundle).serve(answer)

    asyncio.run(serve())


async def killed_devices(folder: Path) -> Figures:
    """Seconds until the real link knows that a device's process was killed."""
    fleet = DeviceRegistry.create(folder / "fleet", port=free_port())
    server, bundle = fleet.start_server(), fleet.enroll("d0")
    seconds = []
    try:
        link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
        presence = link.presence()
        for _ in range(KILLS):
            process = multiprocessing.get_context("spawn").Process(target=be_device, args=(bundle,))
            process.start()
            async with asyncio.timeout(60):
                while (await anext(presence)).event != "joined":
                    pass
                process.kill()
                begun = time.perf_counter()
                while (await anext(presence)).event != "left":
                    pass
            seconds.append(time.perf_counter() - begun)
            process.join()
        await link.close()
    finally:
        server.stop()
    return [figure("killed process is noticed, the link", seconds, unit="s")]


async def measure(folder: Path) -> Figures:
    server = Server(folder)
    try:
        figures = await large_messages(server)
        figures += await tasks(server)
        figures += await reports(server)
        figures += await expired_keys(server)
        memory = psutil.Process(server.process.pid).memory_info().rss / MEGABYTE
        figures.append(figure("server with JetStream, resident memory at the end", [memory], unit="MB"))
    finally:
        server.process.terminate()
        server.process.wait()
    return figures + await killed_devices(folder)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    about, load = machine(), round(os.getloadavg()[0], 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = asyncio.run(measure(folder))
    show(figures)
    setting = f"loopback, {DOWN:,} bytes down and {UP:,} up for a task"
    write("cooperation", "jetstream", {"setting": setting, "load average": load, "figures": figures}, about)


if __name__ == "__main__":
    main()
