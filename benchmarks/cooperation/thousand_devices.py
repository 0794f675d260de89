"""What one coordinator spends on a round with very many devices, apart from the devices.

    python -m benchmarks.cooperation.thousand_devices memory --devices 1000   # links in memory: two minutes
    # real connections with mutual TLS; enrolling waits for the disk, so keep the disk out
    TMPDIR=/dev/shm python -m benchmarks.cooperation.thousand_devices nats --devices 100
    PYTHONPATH=OLD/src python -m benchmarks.cooperation.thousand_devices memory --label before   # another revision

MiniLM-L6, 0.1 % of its weights, every block on every device (``fedavg``, the most that is sent). Devices are canned:
they read the header of a message and answer with correct bytes made beforehand, float8 gradients of every block, one of
16. In memory they answer in the coordinator's process; the processor time of making an answer is measured and taken
off. Over NATS they are in four processes of their own with a connection each, and the server is a process too. There
all devices connect at once, and each measures the seconds from its first attempt to a connection that it may use: TCP,
mutual TLS 1.3, the server's greeting, two subscriptions and a round trip, retries included.

Figures: processor milliseconds of the coordinator's process in a round, with all of its threads; the longest time in
which its event loop could not react, which delays heartbeats; the largest resident memory of the process, with torch,
transformers and the model; processor seconds from the start to the first round (hello, statistics, support, installs).
A device that leaves is printed as it happens, and a run goes on without it, as any run does. Every run is a process of
its own and appends a line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.record import ROOT, figure, machine, rerun, results, show
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.joint_task import JointTask, TaskSpec, joint_task
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.message import MAGIC, Message
from taskedge.cooperation.protocol.payloads import statistics_message
from taskedge.cooperation.protocol.quantization import quantize
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.cooperation.transport.request_reply import RequestReplyLink
from taskedge.demo import assets

RESULTS = ("thousand_devices.jsonl",)
PATH = results("cooperation") / RESULTS[0]
ROUNDS, DISCARD = 6, 1
BAR_MS, BAR_MB = 3000.0, 1024.0
MEGABYTE = 2**20
ANSWERS, PROCESSES = 16, 4
TOKENS, SECONDS = 1500, 0.5


class CannedDevices:
    """Correct answers of any number of devices, from bytes made beforehand."""

    def __init__(self, folder: Path) -> None:
        self._hello = (folder / "hello").read_bytes()
        self._statistics = (folder / "statistics").read_bytes()
        self._gradients = [(folder / f"gradients{number}").read_bytes() for number in range(ANSWERS)]

    @classmethod
    def make(cls, joint: JointTask, config: CooperationConfig, folder: Path) -> CannedDevices:
        """Compute the answers with a model of their own."""
        training = joint.local_training()
        setup = RunSetup(joint.base.model, config, full_parameters=joint.full_parameters, labels=joint.labels)
        measured = training.statistics(["inputs"], 1, config.batch_size, 0)
        info = DeviceInfo(setup.base_digest, joint.labels, len(joint.rows), 1e12, None, "", None)
        (folder / "hello").write_bytes(info.message().pack())
        (folder / "statistics").write_bytes(statistics_message(measured).pack())
        state, _ = setup.install_support(setup.choose_support([measured]))
        for number in range(ANSWERS):
            draw = torch.Generator().manual_seed(number)
            made = {name: 1e-3 * torch.randn(value.shape, generator=draw) for name, value in state.values.items()}
            tensors = Message("gradients", {}, quantize("gradients", config.upload, made, state.values)).pack()
            (folder / f"gradients{number}").write_bytes(tensors[7 + int.from_bytes(tensors[3:7], "little") :])
        return cls(folder)

    def answer(self, number: int, packed: bytes) -> bytes:
        """Return the packed answer of one device to a packed message."""
        header = json.loads(packed[7 : 7 + int.from_bytes(packed[3:7], "little")])
        kind = header["kind"]
        if kind == "hello":
            return self._hello
        if kind == "statistics":
            return self._statistics
        if kind != "task":
            return Message({"install": "installed", "done": "bye"}[kind], {"run": header["run"]}).pack()
        fields = {key: header[key] for key in ("run", "round", "version")}
        fields |= {"kind": "gradients", "tokens": TOKENS, "loss": 0.5, "seconds": SECONDS}
        text = json.dumps(fields).encode()
        return MAGIC + len(text).to_bytes(4, "little") + text + self._gradients[(number + header["round"]) % ANSWERS]


class CannedLink(RequestReplyLink):
    """A link in memory to canned devices."""

    def __init__(self, devices: CannedDevices, count: int) -> None:
        super().__init__()
        self._devices = devices
        self.device_seconds = 0.0
        """Processor seconds of making answers."""
        for number in range(count):
            self._joined(f"d{number}")

    async def close(self) -> None:
        pass

    async def _send(self, device: str, token: str, packed: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._answer, device, token, packed)

    def _answer(self, device: str, token: str, packed: bytes) -> None:
        before = time.thread_time()
        answer = self._devices.answer(int(device[1:]), packed)
        self.device_seconds += time.thread_time() - before
        self._answered(device, token, answer)

    async def _forget(self, device: str, token: str) -> None:
        pass


class CountingLink(NatsCoordinatorLink):
    """The real link, which also counts why the server ended connections."""

    ended: Counter[str]

    async def _on_disconnect(self, client: Any, msg: Any) -> None:
        self.ended[json.loads(msg.data).get("reason", "")] += 1
        await super()._on_disconnect(client, msg)


async def watch_loop(pauses: list[float]) -> None:
    """Record how late the event loop calls back, in milliseconds."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.005)
        pauses.append(1000 * (time.monotonic() - before) - 5)


async def run(
    link: Any,
    joint: JointTask,
    config: CooperationConfig,
    folder: Path,
    canned: Callable[[], float],
    on_all_joined: Callable[[], None] = lambda: None,
) -> Any:
    """Run a coordinator, and return its figures."""
    joined: set[str] = set()
    busy: list[float] = []
    walls: list[float] = []
    since, start, pauses, slowest = [0.0], [0.0], [0.0], []
    lost: list[Event] = []

    def spent() -> float:
        return time.process_time() - canned()

    def on_event(event: Event) -> None:
        name = event["event"]
        if name in ("unfit", "quarantined") or event.get("result") == "refused":
            raise RuntimeError(f"an answer that is not taken: {event}")
        if name == "joined" and event["device"] not in joined:
            joined.add(event["device"])
            if len(joined) == config.devices:
                on_all_joined()
        if name in ("left", "no statistics") or (name == "task" and event["result"] != "accepted"):
            lost.append(event)
            print(event)
        if event["event"] == "planned":
            start[0] = start[0] or spent() - begun
        if event["event"] == "round":
            busy.append(1000 * (spent() - since[0]))
            walls.append(1000 * event["seconds"])
            slowest.append(max(pauses))
        if event["event"] in ("round", "planned"):
            since[0] = spent()
            pauses[:] = [0.0]

    coordinator = Coordinator(
        link,
        joint.base.model,
        config,
        folder,
        full_parameters=joint.full_parameters,
        labels=joint.labels,
        on_event=on_event,
    )
    watching = asyncio.create_task(watch_loop(pauses))
    begun = spent()
    try:
        await coordinator.run()
    finally:
        watching.cancel()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return busy[DISCARD:], walls[DISCARD:], slowest[DISCARD:], start[0], peak, len(lost)


async def measure(how: str, count: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = assets.write_rows(folder / "rows.csv", assets.read_rows(assets.movie_reviews(print))[:64])
        spec = TaskSpec(model=str(assets.minilm(print)), data=data, max_length=64)
        config = CooperationConfig(
            mode="fedavg", rounds=ROUNDS, devices=count, calibrate=False, min_deadline=300.0, wait_seconds=600.0
        )
        # in a process of its own, so that its model is not in this one's memory
        subprocess.run(rerun("can", "--folder", str(folder)), cwd=ROOT, check=True)
        canned, joint = CannedDevices(folder), joint_task(spec, lambda _: None)
        if how == "memory":
            link = CannedLink(canned, count)
            measured = await run(link, joint, config, folder / "run", lambda: link.device_seconds)
        else:
            fleet = DeviceRegistry.create(folder / "fleet", port=free_port())
            for number in range(count):
                fleet.enroll(f"d{number}")
            server = fleet.start_server()
            stack.callback(server.stop)
            for part in range(PROCESSES):
                numbers = [str(number) for number in range(part, count, PROCESSES)]
                words = ["--folder", str(folder), "--part", str(part), "--numbers", *numbers]
                process = subprocess.Popen(rerun("serve", *words), cwd=ROOT)
                stack.callback(process.wait)
                stack.callback(process.kill)
            CountingLink.ended = Counter()
            nats = await CountingLink.connect(fleet.coordinator_bundle)
            assert server.pid is not None
            at_server = psutil.Process(server.pid)
            connecting = [0.0]

            def on_all_joined() -> None:
                times = at_server.cpu_times()
                connecting[0] = 1000 * (times.user + times.system) / count

            measured = await run(nats, joint, config, folder / "run", lambda: 0.0, on_all_joined)
            times, resident = at_server.cpu_times(), at_server.memory_info().rss / MEGABYTE
            await nats.close()
        busy, walls, slowest, start, peak, lost = measured
        figures = [
            figure("coordinator, processor time of a round", busy, bar=BAR_MS, unit="ms"),
            figure("wall time of a round, devices included", walls, unit="ms"),
            figure("longest pause of the event loop in a round", slowest, unit="ms"),
            figure("processor time before the first round", [start], unit="s"),
            figure("largest resident memory of the process", [peak], bar=BAR_MB, unit="MB"),
            figure("devices that left, statistics and tasks without an answer, whole run", [lost], bar=0),
        ]
        if how == "nats":
            seconds = [one for file in folder.glob("connected*") for one in json.loads(file.read_text())]
            figures.append(figure("a device's connection, all connect at once", seconds, unit="s"))
            figures.append(figure("slowest of them", [max(seconds)], unit="s"))
            stale = sum(count for reason, count in CountingLink.ended.items() if "Stale" in reason)
            print(dict(CountingLink.ended))
            figures.append(figure("connections that the server ended because pings were not answered", [stale], bar=0))
            figures.append(figure("server, processor time of a connection", connecting, unit="ms"))
            figures.append(figure("server, processor time of the run", [times.user + times.system], unit="s"))
            figures.append(figure("server, resident memory", [resident], unit="MB"))
    return figures


async def serve(folder: Path, part: int, numbers: list[int]) -> None:
    """Be some devices over NATS, a connection each, until killed."""
    canned = CannedDevices(folder)
    connected: list[float] = []

    async def serve_one(number: int) -> None:
        link = NatsDeviceLink(folder / "fleet" / "devices" / f"d{number}")
        before = time.perf_counter()
        await link._connection.client()
        connected.append(time.perf_counter() - before)
        if len(connected) == len(numbers):
            (folder / f"connected{part}").write_text(json.dumps(connected))

        async def handler(message: Message) -> Message:
            packed = Message(message.kind, message.header).pack()
            return Message.unpack(canned.answer(number, packed))

        await link.serve(handler)

    await asyncio.gather(*map(serve_one, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "nats", "can", "serve"])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--label", default="now", help="revision that is measured, for the record")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", type=int, nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "can":
        spec = TaskSpec(model=str(assets.minilm(print)), data=given.folder / "rows.csv", max_length=64)
        CannedDevices.make(joint_task(spec, lambda _: None), CooperationConfig(mode="fedavg"), given.folder)
    elif given.what == "serve":
        with suppress(KeyboardInterrupt):
            asyncio.run(serve(given.folder, given.part, given.numbers))
    else:
        started = time.monotonic()
        load = round(os.getloadavg()[0], 1)
        figures = asyncio.run(measure(given.what, given.devices))
        show(figures)
        line = {"links": given.what, "devices": given.devices, "revision": given.label, "load average": load}
        line |= {"minutes": round((time.monotonic() - started) / 60, 1), "figures": figures, "machine": machine()}
        with PATH.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
