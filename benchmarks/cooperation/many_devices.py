"""Rounds with many devices in one process, and what a device's process holds beside torch and its model.

    python -m benchmarks.cooperation.many_devices rounds  # 8, 16, 32 and 64 devices: two minutes
    python -m benchmarks.cooperation.many_devices memory  # a real `taskedge cooperate join`: one minute

``rounds``: MiniLM-L6, 0.1 % of its weights, every block on every device (``fedavg``, the most that is sent), over links
in memory. Devices share one model and answer with made-up gradients at once, so all of a round is overhead: planning,
packing, carrying and unpacking, checks, the mean, the step, and the commit to the disk. Processor time of the one
process that is coordinator and devices; wall time beside it, which other work on the machine disturbs.

``memory``: resident bytes of the process, less those of one that imported torch and transformers, loaded the model and
read its values once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.record import figure, show, write
from taskedge.cli.cooperate.join import join_command
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.local_training import LocalResult, LocalTraining
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.demo import assets

RESULTS = (
    "many_devices.json",
    "device_memory.json",
)

COUNTS = (8, 16, 32, 64)
ROUNDS, DISCARD = 10, 2
MEMORY_BAR = 60.0
MEGABYTE = 2**20
BARE = """
import sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2, dtype=torch.float32)
sum(parameter.sum() for parameter in model.parameters())  # pages of a file are resident once they were read
print("loaded", flush=True)
sys.stdin.read()
"""


class Shared(LocalTraining):
    """One model for all devices, whose training takes no time."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._lock = threading.Lock()
        self._installed = False

    def statistics(self, *given: Any) -> Any:
        with self._lock:
            return super().statistics(*given)

    def install(self, *given: Any) -> None:
        with self._lock:
            if not self._installed:
                super().install(*given)
            self._installed = True

    def train(self, task: RoundTask, recipe: TrainingRecipe, check: Callable[[], None] = lambda: None) -> LocalResult:
        draw = torch.Generator().manual_seed(task.seed % 2**31 + recipe.round)
        names = self.blocks.names_in(task.blocks)
        made = {name: 1e-3 * torch.randn(self._parameters[name].shape, generator=draw) for name in names}
        return LocalResult(made, 100, 0.5)


async def rounds(count: int, folder: Path, data: Path) -> tuple[list[float], list[float]]:
    """Milliseconds of processor and of wall time, by round."""
    asked = TaskSpec(model=str(assets.minilm(print)), data=data, max_length=64)
    devices, own = joint_task(asked, lambda _: None), joint_task(asked, lambda _: None)
    shared = Shared(devices.base.model, devices.rows, devices.task.collate(devices.base), devices.full_parameters)
    link, busy, wall, since = MemoryCoordinatorLink(), [], [], [0.0]

    def on_event(event: Event) -> None:
        if event["event"] == "task" and event["result"] != "accepted":
            raise RuntimeError(f"a round that says nothing: {event}")
        if event["event"] == "round":
            busy.append(1000 * (time.process_time() - since[0]))
            wall.append(1000 * event["seconds"])
        if event["event"] in ("round", "planned"):
            since[0] = time.process_time()

    serving = []
    for number in range(count):
        device = Device(link.device(f"d{number}"), shared, labels=devices.labels, memory_bytes=1e12)
        serving.append(asyncio.create_task(device.serve()))
    how = CooperationConfig(mode="fedavg", rounds=ROUNDS + DISCARD, devices=count, calibrate=False, min_deadline=60.0)
    coordinator = Coordinator(
        link, own.base.model, how, folder, full_parameters=own.full_parameters, labels=own.labels, on_event=on_event
    )
    await coordinator.run()
    await asyncio.gather(*serving)
    return busy[DISCARD:], wall[DISCARD:]


def measure_rounds() -> None:
    figures, medians = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = assets.write_rows(folder / "rows.csv", assets.read_rows(assets.movie_reviews(print))[:200])
        for count in COUNTS:
            busy, wall = asyncio.run(rounds(count, folder / str(count), data))
            figures.append(figure(f"{count} devices: processor time of a round", busy, unit="ms"))
            figures.append(figure(f"{count} devices: wall time of a round", wall, unit="ms"))
            medians[count] = figures[-2]["median"]
            show(figures[-2:])
    least, most = COUNTS[0], COUNTS[-1]
    growth = (medians[most] / medians[least]) / (most / least)
    figures.append(
        figure(f"{most} devices for {least}: growth of processor time over growth of devices", [growth], bar=1)
    )
    show(figures[-1:])
    write(
        "cooperation",
        "many_devices",
        {
            "setting": f"MiniLM-L6 at 0.1 %, fedavg, links in memory, one process, {ROUNDS} rounds after {DISCARD}",
            "load": {"processors": os.cpu_count(), "load average, 1 minute": round(os.getloadavg()[0], 1)},
            "figures": figures,
        },
    )


def resident(pid: int) -> float:
    """Megabytes of the process, shared pages counted whole."""
    return psutil.Process(pid).memory_info().rss / MEGABYTE


def measure_memory() -> None:
    model = assets.minilm(print)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = assets.write_rows(folder / "rows.csv", assets.read_rows(assets.movie_reviews(print))[:400])
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        stack.callback(bare.kill)
        assert bare.stdout is not None
        assert bare.stdout.readline() == b"loaded\n"
        loaded = resident(bare.pid)
        fleet = DeviceRegistry.create(folder / "fleet", port=free_port())
        stack.callback(fleet.start_server().stop)
        about = {"bundle": fleet.enroll("d"), "model": model, "data": data, "max_length": 64, "threads": 1}
        with (folder / "log").open("wb") as said:
            device = subprocess.Popen(join_command(about), stdout=said, stderr=said, env=environment)
        stack.callback(device.kill)
        waiting, trained, peak = asyncio.run(watched(fleet, device.pid, data, folder))
    figures = [
        figure("a process with torch, transformers and the model", [loaded], unit="MB"),
        figure("a device that waits for tasks, above that", [waiting - loaded], bar=MEMORY_BAR, unit="MB"),
        figure("a device between rounds, above that", [trained - loaded], unit="MB"),
        figure("a device's largest while it trains, above that", [peak - loaded], unit="MB"),
    ]
    show(figures)
    setting = "MiniLM-L6, 400 movie reviews cut at 64 tokens, batches of 32, one thread, NATS with mutual TLS"
    write("cooperation", "device_memory", {"setting": setting, "figures": figures})


async def watched(fleet: DeviceRegistry, pid: int, data: Path, folder: Path) -> tuple[float, float, float]:
    """Resident megabytes while the device waits, after some rounds, and at most."""
    joint = joint_task(TaskSpec(model=str(assets.minilm(print)), data=data, max_length=64), lambda _: None)
    link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)
    presence = link.presence()
    await asyncio.wait_for(anext(presence), 300)
    await asyncio.sleep(2)
    waiting, found = resident(pid), []
    how = CooperationConfig(rounds=8, wait_seconds=300.0)

    def on_event(event: Event) -> None:
        if event["event"] == "round":
            found.append(resident(pid))

    coordinator = Coordinator(
        link,
        joint.base.model,
        how,
        folder / "run",
        full_parameters=joint.full_parameters,
        labels=joint.labels,
        on_event=on_event,
    )
    running, most = asyncio.create_task(coordinator.run()), 0.0
    while not running.done() and psutil.pid_exists(pid):
        most = max(most, resident(pid))
        await asyncio.wait([running], timeout=0.02)
    await running
    await link.close()
    return waiting, found[-1], most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rounds", "memory"])
    torch.set_num_threads(1)
    {"rounds": measure_rounds, "memory": measure_memory}[parser.parse_args().event]()


if __name__ == "__main__":
    main()
