"""Thirty schedules of faults over the cut, each of which must end with the delta of an undisturbed run, bit for bit.

    OMP_NUM_THREADS=1 python -m benchmarks.cooperation.cut_faults  # minutes

Both ends run in this process, over a link in memory, with a tiny BERT and 20 steps. There is no dropout: both
ends would draw from the one generator of the process, and after a cut link the thread of the lost pass ends while the
device already draws. The cloud's own draws do not change then (tests/cooperation/cut/test_cloud.py). A schedule draws
two faults and the messages at which they strike:

    device killed     its run ends at once, and is started again with --resume from its last checkpoint
    device frozen     it answers after the cloud's patience has ended
    cloud killed      all its sessions are gone, and another cloud takes its place
    link cut          the device leaves in the middle of a step and joins again
    hostile cloud     a matrix with NaN comes down; the run ends with the reason, and is resumed with an honest cloud
    hostile device    beside the run another device sends wrong sizes, NaN, too much, or the session of another

Every schedule has a hostile device. It must be refused, and nothing of the run may change.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import logging

from benchmarks.record import TEST_HELPERS, write
from taskedge.cooperation.cut.base_parts import PartsStore, write_parts
from taskedge.cooperation.cut.cloud import Cloud, CloudLimits
from taskedge.cooperation.cut.cloud_base import load_cloud_base
from taskedge.cooperation.cut.conversation import Conversation, CutEnded, LoopThread
from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.cut_run import train_over_cut
from taskedge.cooperation.cut.cut_settings import CutSettings
from taskedge.cooperation.cut.device_end import DeviceEnd
from taskedge.cooperation.protocol.message import Message, MessageLimits
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.links import DeviceGone
from taskedge.delta.file import load
from taskedge.errors import TaskEdgeError
from taskedge.training.tune_config import TuneConfig

sys.path.insert(0, str(TEST_HELPERS))
import cut_runs
import scripted_devices
from wrapped_link import NO_LIMITS, WrappedLink

RESULTS = ("cut_faults.json",)
SCHEDULES, FAULTS = 30, 2
KINDS = ("device killed", "device frozen", "cloud killed", "link cut", "hostile cloud")
ATTACKS = ("size", "nan", "oversize", "another session")
DEVICE, NEIGHBOR = "honest", "hostile"
PATIENCE = 1.0
"""Seconds that the cloud waits for an answer."""
FIRST, LAST = 40, 360
"""Messages at which faults strike; a run has about 500."""


@dataclass
class Faults:
    """What strikes in a schedule, and what has struck."""

    at: dict[int, str]
    requests: int = 0
    struck: list[str] = field(default_factory=list)

    def next(self) -> str:
        """Count a message to the device and return what strikes at it; ``""`` for nothing."""
        self.requests += 1
        kind = self.at.pop(self.requests, "")
        if kind:
            self.struck.append(kind)
        return kind


class World:
    """A cloud, a device and a neighbor that attacks, on one link."""

    def __init__(self, files: cut_runs.Files, faults: Faults, attack: str, loop: LoopThread, scratch: Path) -> None:
        self.files, self.faults, self.attack, self.loop = files, faults, attack, loop
        base = load_cloud_base(str(files.base), log=cut_runs.quiet)
        self.parts = write_parts(str(files.base), base.stack, len(base.blocks), scratch / "cloud")
        self.store = PartsStore(scratch / "device")
        self.conversation = Conversation(20)
        self.end = DeviceEnd(self.conversation, self.store, log=cut_runs.quiet)
        self.memory: MemoryCoordinatorLink = loop.run(_link())
        self.clouds: list[Cloud] = []
        self.lines: list[str] = []
        self.serving: asyncio.Task[None] | None = None
        self.refused, self.frozen_until = "", 0.0
        self._joined: list[asyncio.Task[None]] = []
        loop.run(self._begin())

    async def _begin(self) -> None:
        await self.new_cloud()
        await self.join()
        if self.attack:
            self._tasks = [asyncio.create_task(self._neighbor())]

    async def new_cloud(self) -> None:
        """End the cloud, with all that it holds, and start another."""
        if self.serving is not None:
            self.serving.cancel()
            await asyncio.gather(self.serving, return_exceptions=True)
        base = load_cloud_base(str(self.files.base), log=cut_runs.quiet)
        limits = CloudLimits(seconds=PATIENCE)
        self.clouds.append(Cloud(Struck(self), base, self.parts, limits, log=self.lines.append))
        self.serving = asyncio.create_task(self.clouds[-1].serve())

    async def join(self) -> None:
        """Let the device join; an earlier connection of it ends."""
        link = self.memory.device(DEVICE)
        self._joined.append(asyncio.create_task(link.serve(self._handle)))

    async def _handle(self, message: Message) -> Message:
        await asyncio.sleep(max(0.0, self.frozen_until - time.monotonic()))
        return await self.conversation.handle(message)

    async def _neighbor(self) -> None:
        plan = scripted_devices.a_plan(self.clouds[0]._base)
        device = scripted_devices.Scripted(NEIGHBOR, plan, change=self._attacking)
        serving = asyncio.create_task(self.memory.device(NEIGHBOR).serve(device.handle))
        while not device.refused:
            await asyncio.sleep(0.05)
        self.refused = device.refused
        serving.cancel()

    def _attacking(self, request: Message, answer: Message) -> Message:
        if request.kind != "columns":
            return answer
        if self.attack == "another session":
            others = [session.token for session in self.clouds[-1].sessions.values() if session.device == DEVICE]
            return Message(answer.kind, {**answer.header, "session": (others or ["0" * 16])[0]}, answer.tensors)
        sizes = {"size": 8, "oversize": 300_000}
        matrix = torch.zeros(sizes.get(self.attack, 0), dtype=torch.uint8)
        if self.attack == "nan":
            matrix = torch.full((8 * 4,), float("nan")).view(torch.uint8)
        return Message(answer.kind, answer.header, {"matrix": matrix})


async def _link() -> MemoryCoordinatorLink:
    return MemoryCoordinatorLink()


class Struck(WrappedLink):
    """The cloud's end of the link, at which faults strike."""

    def __init__(self, world: World) -> None:
        super().__init__(world.memory)
        self._world = world

    async def request(
        self, device: str, message: Message, seconds: float, limits: MessageLimits = NO_LIMITS
    ) -> Message:
        """Send a request, unless a fault strikes."""
        world = self._world
        kind = world.faults.next() if device == DEVICE else ""
        if kind == "device killed":
            world.conversation.end(CutEnded("killed"))
            raise DeviceGone(f"{device!r} was killed")
        if kind == "device frozen":
            world.frozen_until = time.monotonic() + PATIENCE + 0.5
        elif kind == "cloud killed":
            self._again = asyncio.create_task(world.new_cloud())
        elif kind == "link cut":
            self._again = asyncio.create_task(world.join())
        elif kind == "hostile cloud":
            bad = {name: torch.full_like(value, 255) for name, value in message.tensors.items()}
            message = Message(message.kind, message.header, bad)
        return await super().request(device, message, seconds, limits)


@contextmanager
def world(files: cut_runs.Files, faults: Faults, attack: str) -> Iterator[World]:
    """Serve inside the block."""
    with tempfile.TemporaryDirectory() as scratch, LoopThread() as loop:
        yield World(files, faults, attack, loop, Path(scratch))


def run(files: cut_runs.Files, name: str, faults: Faults, attack: str) -> dict[str, Any]:
    """Train over the cut under faults until there is a delta, and return what happened."""
    config: TuneConfig = files.config(name, epochs=4, checkpoint_every=4, max_columns=4, max_rows=6)
    settings, starts, refused, repeated = CutSettings(patience=20), 0, "", 0
    while True:
        with world(files, faults, attack) as now:
            starts += 1
            try:
                done = train_over_cut(
                    config, settings, now.end, now.store, resume=starts > 1, progress=False, log=cut_runs.quiet
                )
            except (CutEnded, CutRefused) as error:
                if not faults.struck or starts > 2 * FAULTS + 2:
                    raise
                print(f"  start {starts}: {type(error).__name__}: {str(error)[:90]}", flush=True)
                continue
            finally:
                refused, repeated = refused or now.refused, repeated + now.end.counted.repeated
            break
    return {"starts": starts, "repeated_passes": repeated, "refused": refused, "steps": done.steps, "out": done.out}


def same(first: Path, second: Path) -> bool:
    """Whether two delta files hold the same bits."""
    one, other = load(first), load(second)
    linears = one.linears.keys() == other.linears.keys() and all(
        torch.equal(linear.values, other.linears[name].values) and torch.equal(linear.rows, other.linears[name].rows)
        for name, linear in one.linears.items()
    )
    heads = one.full_parameters.items()
    return linears and all(torch.equal(value, other.full_parameters[name]) for name, value in heads)


def schedule(files: cut_runs.Files, plain: Path, seed: int) -> dict[str, Any]:
    """Run one schedule."""
    draw = random.Random(seed)
    places = sorted(draw.sample(range(FIRST, LAST), FAULTS))
    at = {place: KINDS[(seed + number * draw.randrange(1, len(KINDS))) % len(KINDS)] for number, place in
          enumerate(places)}  # fmt: skip
    attack = ATTACKS[seed % len(ATTACKS)]
    line: dict[str, Any] = {"seed": seed, "faults": {str(place): kind for place, kind in at.items()}, "attack": attack}
    began = time.monotonic()
    faults = Faults(dict(at))
    try:
        found = run(files, f"{seed}.safetensors", faults, attack)
        line |= {name: value for name, value in found.items() if name != "out"}
        line |= {"struck": len(faults.struck), "same_bits": same(plain, found["out"])}
        line["ok"] = line["same_bits"] and line["struck"] == FAULTS and bool(found["refused"])
    except TaskEdgeError as error:
        line |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
    line["seconds"] = round(time.monotonic() - began, 1)
    return line


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp())
    try:
        files = cut_runs.files(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        plain = run(files, "plain.safetensors", Faults({}), "")["out"]
        lines = []
        for seed in range(SCHEDULES):
            lines.append(schedule(files, plain, seed))
            print(lines[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    ended = sum(line["ok"] for line in lines)
    print(f"{ended} of {SCHEDULES} schedules ended with the delta of the undisturbed run")
    write(
        "cooperation",
        "cut_faults",
        {
            "setting": "tiny BERT, 20 steps, both ends in one process, a link in memory",
            "schedules": lines,
            "ended_with_the_same_delta": {"value": ended, "of": SCHEDULES, "met": ended == SCHEDULES},
        },
    )


if __name__ == "__main__":
    main()
