"""The example for real: a SuperLink, two SuperNodes and ``flwr run`` as processes on loopback.

Each message starts a process that loads torch, so this takes minutes on a busy machine. All that is started is killed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tiny_task
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'taskedge[flower]' in an environment of its own")

import taskedge as te
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink

ROOT = Path(__file__).parents[3]
PROGRAMS = Path(sys.executable).parent
NAMES, CLASSES = ("d0", "d1"), ("neg", "pos")
SETTINGS = {
    "devices": 2,
    "rounds": 2,
    "batch_size": 4,
    "per_neuron": 1,
    "first_deadline": 300.0,
    "wait_seconds": 300.0,
    "calibrate": False,
}
STARTED_WITHIN, RUN_WITHIN = 120.0, 600.0


class Processes:
    """Programs of Flower's, each leader of a group, all of which are killed in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, []
        (folder / "home").mkdir()
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
        }

    def start(self, log: str, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                [PROGRAMS / program, *options],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def said(self) -> str:
        """The ends of all logs, for a test that fails."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def end(self) -> None:
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.running:
            process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise AssertionError("the SuperLink does not listen")


@pytest.fixture
def processes(tmp_path):
    made = Processes(tmp_path)
    try:
        yield made
    finally:
        made.end()


def settings_text() -> str:
    return " ".join(f"{name}={str(value).lower()}" for name, value in SETTINGS.items())


def without_flower(folder: Path) -> te.Delta:
    """The same run over links in memory."""

    async def run() -> te.Delta:
        link, serving = MemoryCoordinatorLink(), []
        for name in NAMES:
            joint = joint_task(TaskSpec(str(folder / "base"), folder / f"{name}.csv", classes=CLASSES), lambda _: None)
            device = Device(link.device(name), joint.local_training(min_rows=1), labels=joint.labels)
            serving.append(asyncio.create_task(device.serve()))
        joint = joint_task(TaskSpec(str(folder / "base"), classes=CLASSES), lambda _: None)
        coordinator = Coordinator(
            link,
            joint.base.model,
            CooperationConfig(**SETTINGS),
            folder / "run",
            full_parameters=joint.full_parameters,
            labels=joint.labels,
        )
        await coordinator.run()
        await asyncio.gather(*serving)
        return coordinator.delta()

    return asyncio.run(run())


@pytest.mark.timeout(RUN_WITHIN + 3 * STARTED_WITHIN)
def test_flwr_run_gives_the_delta_of_a_run_without_flower(tmp_path, processes):
    tiny_task.bert(tmp_path / "base", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for place, name in enumerate(NAMES):
        tiny_task.table(tmp_path / f"{name}.csv", tiny_task.rows(24, place))
    app = shutil.copytree(ROOT / "examples" / "flower", tmp_path / "app")
    port = free_port()
    (tmp_path / "home" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    link = processes.start(
        "link.log",
        "flower-superlink",
        "--insecure",
        "--disable-runtime-dependency-installation",
        f"--port={port}",
    )
    wait_for(port, link)
    for name in NAMES:
        about = f'name="{name}" data="{tmp_path / name}.csv"'
        options = (f"--superlink=127.0.0.1:{port}", f"--port={free_port()}", "--node-config", about)
        processes.start(f"{name}.log", "flower-supernode", "--insecure", *options)
    run_config = f'model="{tmp_path / "base"}" settings="{settings_text()}" out="{tmp_path / "task.safetensors"}"'
    run = processes.start("run.log", "flwr", "run", str(app), "here", "--stream", "--run-config", run_config)
    written, end = tmp_path / "task.safetensors", time.monotonic() + RUN_WITHIN
    while not written.exists() and time.monotonic() < end and link.poll() is None:
        assert run.poll() in (None, 0), processes.said()
        time.sleep(0.5)
    assert written.exists(), processes.said()
    found, expected = te.load(written), without_flower(tmp_path)
    assert found.provenance.labels == CLASSES
    assert found.linears.keys() == expected.linears.keys()
    for name, linear in expected.linears.items():
        assert torch.equal(found.linears[name].columns, linear.columns)
        torch.testing.assert_close(found.linears[name].values, linear.values, rtol=0, atol=1e-6)
        assert bool((linear.values != 0).any())
    for name, whole in expected.full_parameters.items():
        torch.testing.assert_close(found.full_parameters[name], whole, rtol=0, atol=1e-6)
