"""Thirty runs of twenty rounds, in which devices, server and coordinator are killed or frozen at random moments.

    python -m benchmarks.cooperation.fault_schedules              # some twelve minutes; goes on where it was stopped
    python -m benchmarks.cooperation.fault_schedules --seeds 7 8  # these alone
    python -m benchmarks.cooperation.fault_schedules --out new.jsonl  # all, into another file

Each run is three `taskedge cooperate join --emulate` and a `serve`, as processes of their own over a real server with
mutual TLS on loopback, with a tiny model and rounds of some 0.3 s. A seed fixes which faults come in which round, and
how long after it began:

    kill         kill -9 of a device, which is started anew at once or some seconds later
    freeze       SIGSTOP of a device, and SIGCONT after up to 8 s: past its deadline, or past its being taken for gone
    server       the server is killed or ended, and started again at once or some seconds later, unless the coordinator
                 was quicker
    coordinator  kill -9 of the coordinator, which is started anew with --resume

A run passes when the coordinator ends by itself in the last round; no version that was on the disk is ever followed by
one of an earlier round; every resumption goes on from the last version that was there; every round is in the log; and
the delta loads, holds the values of the last version, and applies to a fresh base.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import taskedge as te
from benchmarks.record import TEST_HELPERS, machine, results
from taskedge.cli.main import main as taskedge
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.joint_task import TaskSpec, joint_task
from taskedge.cooperation.transport.nats.server import free_port

sys.path.insert(0, str(TEST_HELPERS))
import tiny_task

RESULTS = ("fault_schedules.jsonl",)

PRELOADED = [
    *(
        "taskedge.cli.main",
        "taskedge.cli.cooperate.run_summary",
        "taskedge.cooperation.fleet.nats_run",
        "taskedge.cooperation.joint_task",
    ),
    *(
        "taskedge.cooperation.device.device",
        "taskedge.cooperation.transport.emulated",
        "transformers.models.auto.modeling_auto",
        "nats.aio.client",
    ),
    "transformers.models.bert.modeling_bert",
]
"""Imported once, by the process that all others are forked from."""
PATH = results("cooperation") / "fault_schedules.jsonl"
RUNS, ROUNDS, LIMIT_SECONDS = 30, 20, 240.0
DEVICES = ("edge0", "edge1", "edge2")
KINDS = ("kill", "freeze", "server", "coordinator")
FLEET = """
[channel]
bandwidth_hz = 1e6
[model]
path = "base"
sequence_tokens = 64
"""
DEVICE = """
[[device]]
name = "{name}"
flops_per_second = {flops}
utilisation_ratio = 1.0
memory_bytes = 4e9
tokens_per_round = 512
batch_sequences = 8
wired_bits_per_second = 1e6
"""
processes = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    round: int
    after: float
    """Seconds into the round."""
    kind: str
    whom: str
    lasts: float
    """Seconds until it is mended."""
    how: str = "SIGKILL"


def schedule(seed: int) -> list[Fault]:
    """Four to seven faults; of every kind over a few seeds, often several at once."""
    draw = random.Random(seed)
    faults = []
    for _ in range(draw.randint(4, 7)):
        kind = draw.choice(KINDS)
        whom = draw.choice(DEVICES) if kind in ("kill", "freeze") else kind
        lasts = {"kill": 3.0, "freeze": 8.0, "server": 2.0, "coordinator": 1.0}[kind] * draw.choice(
            [0.0, draw.random()]
        )
        how = draw.choice(["SIGKILL", "SIGTERM"]) if kind == "server" else "SIGKILL"
        when = draw.randint(1, ROUNDS - 1), round(draw.uniform(0, 0.4), 3)
        faults.append(Fault(*when, kind, whom, round(max(lasts, 0.3 if kind == "freeze" else 0.0), 3), how))
    return sorted(faults, key=lambda fault: (fault.round, fault.after))


class Failed(Exception):
    """A promise that was not kept."""


class Run:
    """One run and its processes, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.task = folder, tiny_task.folder_of_a_task(folder)
        flops = {name: 1.5e7 * (1 + place) for place, name in enumerate(DEVICES)}
        rows = [DEVICE.format(name=name, flops=flops[name]) for name in DEVICES]
        (folder / "fleet.toml").write_text(FLEET + "".join(rows))
        self.fleet = DeviceRegistry.create(folder / "plant", port=free_port())
        self.bundles = {name: self.fleet.enroll(name) for name in DEVICES}
        self.fleet.start_server()
        self.running: dict[str, BaseProcess] = {}
        self.latest = -1
        self.restarted = 0
        self.mends: list[tuple[float, Fault]] = []
        self.killed_servers: list[int] = []
        self.resumed_from: list[int] = []
        for place, name in enumerate(DEVICES):
            tiny_task.table(folder / f"{name}.csv", tiny_task.rows(40, seed=place))
            self.start(name)
        self.start("coordinator")

    def start(self, name: str, *more: str) -> None:
        """Starts a device or the coordinator, once more."""
        about = ["--model", self.task / "base", "--class", "neg", "--class", "pos"]
        if name == "coordinator":
            how = ["--budget", "2%", "--batch-size", 8, "--rounds", ROUNDS, "--devices", 3, "--first-deadline", 20]
            where = ["--folder", self.fleet.folder, "--fleet", self.folder / "fleet.toml", "--out", self.out]
            words = ["serve", *about, *how, *where, *more]
        else:
            mine = ["--bundle", self.bundles[name], "--data", self.folder / f"{name}.csv"]
            words = ["join", *about, *mine, "--threads", 1, "--emulate"]
        said = self.folder / f"{name}.log"
        self.running[name] = processes.Process(target=_run, args=(["cooperate", *map(str, words)], said))
        self.running[name].start()

    @property
    def out(self) -> Path:
        return self.folder / "task.safetensors"

    def events(self) -> list[dict[str, Any]]:
        """All whole lines of the log so far."""
        found: list[dict[str, Any]] = []
        for place in ("run", "last-run"):
            with suppress(OSError):
                for line in (self.fleet.folder / place / "log.jsonl").read_text().splitlines():
                    with suppress(ValueError):
                        found.append(json.loads(line))
        return found

    def look(self) -> None:
        """Takes note of the version on the disk, which never goes back."""
        version = versions.latest(self.fleet.folder / "run")
        if version is None:
            return
        number = int(version.name[len(versions.PREFIX) : -len(versions.SUFFIX)])
        if number < self.latest:
            raise Failed(f"version {self.latest} was on the disk, and now the last one is {number}")
        self.latest = number

    def happen(self, fault: Fault) -> None:
        """Lets it go wrong, and takes note of when to mend it."""
        if fault.kind == "server":
            pid = self.fleet.server.pid
            if pid is not None:
                os.kill(pid, getattr(signal, fault.how))
                self.killed_servers.append(pid)
        elif fault.kind == "freeze":
            os.kill(self._pid(fault.whom), signal.SIGSTOP)
        else:
            self._kill(fault.whom)
            self.look()
        self.mends.append((time.monotonic() + fault.lasts, fault))

    def mend(self) -> None:
        """Mends what is due."""
        due = [one for one in self.mends if one[0] <= time.monotonic()]
        for one in due:
            self.mends.remove(one)
            fault = one[1]
            if fault.kind == "server":
                self._server_back()
            elif fault.kind == "freeze":
                with suppress(ProcessLookupError):
                    os.kill(self._pid(fault.whom), signal.SIGCONT)
            elif self.running[fault.whom].is_alive():
                continue  # killed twice, and already back
            elif fault.kind == "kill":
                self.start(fault.whom)
            else:
                self.resumed_from.append(self.latest)
                begun = (self.fleet.folder / "run" / "run.json").exists()
                self.start("coordinator", *(["--resume"] if begun else ["--force"]))

    def supervise(self) -> None:
        """Starts devices anew that ended by themselves with a fault, as systemd would: one that hung, say."""
        for name in DEVICES:
            if not self.running[name].is_alive() and (self.running[name].exitcode or 0) > 0:
                self.restarted += 1
                self.start(name)

    def finish(self) -> None:
        """Nothing of the run is left running."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGCONT)
            process.kill()
            process.join()
        self.fleet.server.stop()

    def _server_back(self) -> None:
        deadline = time.monotonic() + 15
        while self.fleet.server.pid in self.killed_servers and time.monotonic() < deadline:
            time.sleep(0.02)  # one that was told to end still does
        DeviceRegistry.open(self.fleet.folder).start_server()

    def _pid(self, name: str) -> int:
        pid = self.running[name].pid
        if pid is None or not self.running[name].is_alive():
            raise ProcessLookupError(name)
        return pid

    def _kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].join()


def _run(words: list[str], said: Path) -> None:
    with said.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = taskedge(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def carry_out(run: Run, faults: Sequence[Fault]) -> int:
    """Runs to the end, with faults; returns how many of them came."""
    left, begun = list(faults), {0: time.monotonic()}
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        run.look()
        run.mend()
        rounds = max((event["round"] for event in run.events() if event["event"] in ("round", "resumed")), default=0)
        begun.setdefault(rounds, time.monotonic())
        down = any(fault.kind == "coordinator" for _, fault in run.mends)
        run.supervise()
        if not down and not run.running["coordinator"].is_alive():
            code = run.running["coordinator"].exitcode
            if code != 0:
                raise Failed(f"the coordinator ended with code {code} in round {rounds + 1}")
            return len(faults) - len(left)
        started = any(event["event"] == "ready" for event in run.events())
        while left and not down and started and rounds + 1 >= left[0].round:
            if rounds + 1 == left[0].round and time.monotonic() < begun[rounds] + left[0].after:
                break
            fault = left.pop(0)
            with suppress(ProcessLookupError):  # it is down already
                run.happen(fault)
            down = fault.kind == "coordinator"
        if time.monotonic() > deadline:
            raise Failed(f"not done after {LIMIT_SECONDS:g} s, in round {rounds + 1}")
        time.sleep(0.02)


def check(run: Run) -> dict[str, Any]:
    """What the run promised; returns what it gave.

    Raises:
        Failed: something was not kept.
    """
    events = run.events()
    resumed = [event["round"] for event in events if event["event"] == "resumed"]
    expected = [number for number in run.resumed_from if number >= 0]
    if resumed != expected[len(expected) - len(resumed) :]:
        raise Failed(f"resumed after rounds {resumed}, where versions {expected} were on the disk")
    ended = [event for event in events if event["event"] == "round"]
    missing = set(range(1, ROUNDS + 1)) - {event["round"] for event in ended} - set(resumed)
    if missing or events[-1]["event"] != "done" or events[-1]["round"] != ROUNDS:
        raise Failed(f"rounds {sorted(missing)} are not in the log, which ends with {events[-1]}")
    counted = [event["version"] for event in ended]
    if counted != sorted(counted) or len(set(counted)) < len([e for e in ended if e["accepted"]]):
        raise Failed(f"versions {counted} do not only rise")
    last = versions.latest(run.fleet.folder / "last-run")
    _, tensors = versions.read(last)
    delta = te.load(run.out)
    asked = TaskSpec(model=str(run.task / "base"), data=run.task / "eval.csv", classes=("neg", "pos"))
    joint = joint_task(asked, lambda _: None)
    with te.applied(joint.base.model, delta):
        values = dict(joint.base.model.named_parameters())
        measured = joint.task.evaluate(joint.base.model, joint.base, joint.rows, 8, lambda _: None)
        head = [name for name in joint.full_parameters if not torch.equal(values[name], tensors[f"value/{name}"])]
    if head:
        raise Failed(f"the delta's {head} are not those of the last version")
    assert load_file(run.out)
    tasks = Counter(event["result"] for event in events if event["event"] == "task")
    return {
        "version": counted[-1],
        "resumed": resumed,
        "tasks": dict(tasks),
        "restarted": run.restarted,
        "accuracy": measured["accuracy"],
    }


def one(seed: int) -> dict[str, Any]:
    """The run of a seed; where it failed, why, and its folder is kept."""
    folder, begun, faults = Path(tempfile.mkdtemp(prefix=f"faults-{seed}-")), time.monotonic(), schedule(seed)
    row: dict[str, Any] = {"seed": seed, "faults": [asdict(fault) for fault in faults]}
    run = Run(folder)
    try:
        row["happened"] = carry_out(run, faults)
        row |= check(run) | {"passed": True}
    except Exception as error:
        row |= {"passed": False, "why": f"{type(error).__name__}: {error}", "folder": str(folder)}
    finally:
        run.finish()
    if row["passed"]:
        shutil.rmtree(folder)
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(RUNS))
    parser.add_argument("--out", type=Path, default=PATH)
    given = parser.parse_args()
    seeds, path = given.seeds, given.out
    os.environ |= tiny_task.environment(TOKENIZERS_PARALLELISM="false")
    torch.set_num_threads(1)
    processes.set_forkserver_preload(PRELOADED)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {row["seed"]: row for row in rows}
    for seed in seeds:
        if seed not in done:
            done[seed] = one(seed)
            with path.open("a") as file:
                file.write(json.dumps(done[seed] | {"machine": machine()}) + "\n")
            print(json.dumps({key: value for key, value in done[seed].items() if key != "faults"}), flush=True)
    happened = Counter(fault["kind"] for row in done.values() for fault in row["faults"])
    print(f"{sum(row['passed'] for row in done.values())} of {len(done)} passed; faults: {dict(happened)}")


if __name__ == "__main__":
    main()
