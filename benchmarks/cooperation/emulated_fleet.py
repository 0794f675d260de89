"""Plans against seconds that really pass: fleets of six and eight, emulated by as many processes of one machine.

    python -m benchmarks.cooperation.emulated_fleet prediction    # predicted against observed rounds: four minutes
    python -m benchmarks.cooperation.emulated_fleet plans         # exact against every baseline plan: an hour; goes on
    python -m benchmarks.cooperation.emulated_fleet plans --show  # what is on file
    python -m benchmarks.cooperation.emulated_fleet planned       # a hundred other fleets, by their plans alone

MiniLM-L6 on question types; rows are cut at 24 tokens, so that the real step of a device is short beside the emulated
one, which is that of the fleet file for rows of 128 tokens. Real `taskedge cooperate join --emulate` processes, a real
server with mutual TLS on loopback, and a coordinator that plans, corrects its plan by what it observes, and commits
every round to the disk. A round's seconds are the coordinator's, from the tasks' leaving to the committed version.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import taskedge as te
from benchmarks.accuracy.sweep import append
from benchmarks.record import figure, machine, results, show, write
from benchmarks.report import report_cooperation
from taskedge.backbone.cost_model import block_table, dummy_inputs, skeleton
from taskedge.cli.cooperate.join import join_command
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.coordinator import Coordinator
from taskedge.cooperation.coordinator.event_log import Event
from taskedge.cooperation.fleet.device_registry import DeviceRegistry
from taskedge.cooperation.fleet.local_processes import LocalProcesses
from taskedge.cooperation.fleet.split_data import write_parts
from taskedge.cooperation.joint_task import JointTask, TaskSpec, joint_task
from taskedge.cooperation.scheduling.estimates import merge_layers
from taskedge.cooperation.transport.nats.coordinator_link import NatsCoordinatorLink
from taskedge.cooperation.transport.nats.server import free_port
from taskedge.demo import assets
from taskedge.planning.fleet_costs import fleet_costs
from taskedge.planning.fleet_file import parse_fleet
from taskedge.planning.fleet_spec import FleetSpec as Described
from taskedge.planning.plan import BASELINES, make_plan

RESULTS = (
    "emulated_fleet.json",
    "emulated_plans.jsonl",
    "planned_fleets.json",
)

PATH = results("cooperation") / "emulated_plans.jsonl"
LENGTH, BATCH, TRAIN, TEST = 24, 8, 1200, 800
MEDIAN_BAR, P95_BAR = 0.10, 0.25
SOLVERS = ("exact", *BASELINES)
EVERY = 3
"""Rounds between two looks at the accuracy."""


@dataclass(frozen=True)
class Place:
    """Where fleets are drawn from, and what is trained there."""

    devices: int
    draw: Callable[[random.Random, int], dict[str, Any]]
    """What the device of that number is."""
    bandwidth_hz: float
    words: dict[str, Any]
    """The distribution."""
    settings: dict[str, Any]

    @property
    def names(self) -> list[str]:
        return [f"device-{number}" for number in range(1, self.devices + 1)]

    def fleet(self, seed: int) -> Described:
        """One fleet: figures of no particular devices, and chosen for no particular plan."""
        draw = random.Random(seed)
        fixed = {"utilisation_ratio": 1.0, "memory_bytes": 4e9, "tokens_per_round": BATCH * 128}
        fixed |= {"batch_sequences": BATCH}
        rows = [{"name": name} | self.draw(draw, number) | fixed for number, name in enumerate(self.names)]
        channel = {"bandwidth_hz": self.bandwidth_hz}
        whole = {"server": {"downlink_bits_per_second": 20e6}, "channel": channel, "device": rows}
        return parse_fleet(whole, Path("drawn"))


def field(draw: random.Random, number: int) -> dict[str, Any]:
    """A device on radio."""
    speed = 8e9 * 4 ** draw.random()
    return {"flops_per_second": speed, "transmit_watts": 0.1, "gain_db": draw.uniform(-142, -115)}


def yard(draw: random.Random, number: int) -> dict[str, Any]:
    """Small boards at the gateway's cable, then boxes in vehicles, which share the radio channel."""
    if number < 4:
        return {"flops_per_second": 8e9 * 2 ** draw.random(), "wired_bits_per_second": 10e6}
    return {
        "flops_per_second": 20e9 * 2 ** draw.random(),
        "transmit_watts": 0.1,
        "gain_db": draw.uniform(-140, -110),
    }


COMMON = {"noise_dbm_per_hz": -174, "downlink_bits_per_second": 20e6, "tokens_per_round": BATCH * 128}
PLACES = {
    "prediction": Place(
        devices=6,
        draw=field,
        bandwidth_hz=2e5,
        words=COMMON
        | {
            "devices": 6,
            "sustained_flops_per_second": "log-uniform 8e9 .. 32e9",
            "gain_db": "uniform -142 .. -115",
            "transmit_watts": 0.1,
            "bandwidth_hz": 2e5,
        },
        settings={"blocks": 6},
    ),
    "plans": Place(
        devices=8,
        draw=yard,
        bandwidth_hz=125e3,
        words=COMMON
        | {
            "devices": "4 boards on a cable of 10 Mbit/s, 4 boxes in vehicles on one radio channel",
            "sustained_flops_per_second": "log-uniform 8e9 .. 16e9 and 20e9 .. 40e9",
            "gain_db": "uniform -140 .. -110",
            "transmit_watts": 0.1,
            "bandwidth_hz": 125e3,
        },
        settings={"blocks": 4, "budget": "1%"},  # with four blocks, a plan also chooses whom it leaves out
    ),
}


@contextmanager
def devices(folder: Path, joint: JointTask, names: Sequence[str]) -> Iterator[DeviceRegistry]:
    """A server, and a process for each device that stays from run to run."""
    columns = write_parts(joint, folder / "parts", names, skew=False, seed=0, must_match=False)
    fleet, processes = DeviceRegistry.create(folder / "fleet", name="emulated", port=free_port()), LocalProcesses()
    bundles = {name: fleet.enroll(name) for name in names}
    server = fleet.start_server()
    try:
        for name, bundle in bundles.items():
            about = {"model": joint.spec.model, "task": joint.task.name, "classes": joint.labels, **columns.named}
            about |= {"max_length": LENGTH, "threads": 1, "emulate": True, "stay": True}
            words = join_command({"bundle": bundle, "data": folder / "parts" / f"{name}.jsonl", **about})
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            processes.start(name, words, folder / f"{name}.log", environment)
        processes.guard(server.pid)
        yield fleet
    finally:
        processes.stop()
        server.stop()
        processes.end_guard()


async def run(
    fleet: DeviceRegistry,
    joint: JointTask,
    how: CooperationConfig,
    drawn: Described,
    folder: Path,
    *,
    keep: bool = False,
) -> tuple[list[Event], dict[int, Path]]:
    """All events of a run, and with ``keep`` a delta of every few rounds."""
    events: list[Event] = []
    deltas: dict[int, Path] = {}
    link = await NatsCoordinatorLink.connect(fleet.coordinator_bundle)

    def on_event(event: Event) -> None:
        events.append(event)
        if keep and event["event"] == "round" and event["round"] % EVERY == 0:
            deltas[event["round"]] = folder / f"{event['round']}.safetensors"
            te.save(coordinator.delta(), deltas[event["round"]])

    try:
        more = {"full_parameters": joint.full_parameters, "labels": joint.labels, "fleet": drawn, "on_event": on_event}
        coordinator = Coordinator(link, joint.base.model, how, folder / "run", **more)
        await coordinator.run()
    finally:
        await link.close()
    return events, deltas


def settings(what: str, rounds: int, solver: str, seed: int) -> CooperationConfig:
    place = PLACES[what]
    fixed = {"batch_size": BATCH, "devices": place.devices, "wait_seconds": 600.0} | place.settings
    return CooperationConfig(rounds=rounds, solver=solver, seed=seed, **fixed)


def data(folder: Path) -> tuple[Path, Path]:
    """Training and test rows."""
    parts = assets.split(assets.read_rows(assets.question_types(print)), {"train": TRAIN, "test": TEST}, seed=0)
    for part, rows in parts.items():
        assets.write_rows(folder / f"{part}.csv", rows)
    return folder / "train.csv", folder / "test.csv"


def asked(train: Path, seed: int) -> JointTask:
    return joint_task(
        TaskSpec(model=str(assets.minilm(print)), data=train, max_length=LENGTH, seed=seed), lambda _: None
    )


def load() -> dict[str, Any]:
    return {"processors": os.cpu_count(), "load average, 1 minute": round(os.getloadavg()[0], 1)}


def overran(events: Sequence[Event]) -> int:
    """Tasks whose real step was slower than the emulated one."""
    real = [(event["real_seconds"], event["stated_seconds"]) for event in events if event["event"] == "task"]
    return sum(took is not None and took > stated for took, stated in real)


def errors(events: Sequence[Event], event: str, observed: str, after: int) -> list[float]:
    """``|observed / predicted - 1|``."""
    rows = [row for row in events if row["event"] == event and row["round"] > after]
    return [
        abs(row[observed] / row["predicted_seconds"] - 1) for row in rows if row.get("result") in (None, "accepted")
    ]


def prediction(rounds: int, discard: int) -> None:
    """How far rounds are from what was predicted before each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        joint = asked(data(folder)[0], 0)
        place, how = PLACES["prediction"], settings("prediction", rounds + discard, "exact", 0)
        with devices(folder, joint, place.names) as fleet:
            events, _ = asyncio.run(run(fleet, joint, how, place.fleet(0), folder))
    tasks = [event for event in events if event["event"] == "task"]
    off = errors(events, "round", "seconds", discard)
    p95 = statistics.quantiles(off, n=100, method="inclusive")[94]
    figures = [
        figure("round: |observed / predicted - 1|", off, bar=MEDIAN_BAR),
        figure("round: |observed / predicted - 1|, 95th percentile", [p95], bar=P95_BAR),
        figure("task: |observed / predicted - 1|", errors(events, "task", "observed_seconds", discard)),
        figure("round: observed", [e["seconds"] for e in events if e["event"] == "round"], unit="s"),
        figure("task: real step / emulated step", [e["real_seconds"] / e["stated_seconds"] for e in tasks]),
    ]
    show(figures)
    write(
        "cooperation",
        "emulated_fleet",
        {
            "setting": f"MiniLM-L6, question types, {BATCH} rows of at most {LENGTH} tokens for a device and round, "
            f"six emulated devices, {rounds} rounds after the first {discard}",
            "fleet": place.words | {"seed": 0},
            "load": load(),
            "tasks": {result: sum(e["result"] == result for e in tasks) for result in {e["result"] for e in tasks}},
            "tasks whose real step was slower than the emulated one": overran(events),
            "plans": [e["why"] for e in events if e["event"] == "planned"],
            "figures": figures,
        },
    )


def plans(rounds: int, seeds: int, solvers: Sequence[str]) -> None:
    """Seconds and accuracy of every plan, seed by seed."""
    done = (
        {(row["solver"], row["seed"]) for row in map(json.loads, PATH.read_text().splitlines())}
        if PATH.exists()
        else set()
    )
    place = PLACES["plans"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train, test = data(folder)
        with devices(folder, asked(train, 0), place.names) as fleet:
            for seed in range(seeds):
                for solver in solvers:
                    if (solver, seed) in done:
                        continue
                    here = folder / f"{solver}-{seed}"
                    here.mkdir()
                    how, joint = settings("plans", rounds, solver, seed), asked(train, seed)
                    events, deltas = asyncio.run(run(fleet, joint, how, place.fleet(seed), here, keep=True))
                    row = summary(events) | {"accuracy": accuracies(deltas, train, test, seed)}
                    row = {"solver": solver, "seed": seed, "rounds": rounds} | row
                    append(PATH, row | {"load": load(), "machine": machine()})
                    print(json.dumps(row))


def summary(events: Sequence[Event]) -> dict[str, Any]:
    """What a run took. Seconds are those of its rounds; devices are installed on before."""
    rounds = [event for event in events if event["event"] == "round"]
    passed = [sum(event["seconds"] for event in rounds[:number]) for number in range(1, len(rounds) + 1)]
    return {
        "seconds": passed[-1],
        "answers_a_round": sum(event["event"] == "task" for event in events) / len(rounds),
        "seconds_after": {number: passed[number - 1] for number in range(EVERY, len(rounds) + 1, EVERY)},
        "round_median": statistics.median(event["seconds"] for event in rounds),
        "off_median": statistics.median(errors(events, "round", "seconds", 5)),
        "unused_tasks": sum(event["event"] == "task" and event["result"] != "accepted" for event in events),
        "overran_tasks": overran(events),
        "plans": sum(event["event"] == "planned" for event in events),
    }


def accuracies(deltas: dict[int, Path], train: Path, test: Path, seed: int) -> dict[int, float]:
    """Of every delta on the test rows."""
    joint = asked(train, seed)
    rows = joint.encode(joint.task.read(test, joint.columns, answers=True, log=lambda _: None))
    found = {}
    for number, path in deltas.items():
        with te.applied(joint.base.model, te.load(path)):
            measured = joint.task.evaluate(joint.base.model, joint.base, rows, 32, lambda _: None)
        found[number] = measured["accuracy"]
    return found


def planned(seeds: int) -> None:
    """Planned rounds of every solver as multiples of the exact plan's, on fleets that are not emulated."""
    shape = skeleton(str(assets.minilm(print)))
    found: dict[str, list[float]] = {}
    for what, seed in itertools.product(PLACES, range(1000, 1000 + seeds)):
        fleet, share = PLACES[what].fleet(seed), {"prediction": 0.001, "plans": 0.01}[what]
        table = merge_layers(
            block_table(shape, dummy_inputs(shape, 1, 128), share=share, name="MiniLM-L6"),
            settings("plans", 1, "exact", seed),
        )
        costs = replace(fleet_costs(fleet, table), bits=8.0 * table.payload_values)  # answers are float8
        plan = make_plan(fleet, table, costs, compare=("one-each", *BASELINES))
        for solver, seconds in plan.compared_seconds.items():
            if seconds is not None:
                found.setdefault(f"{KIND[what]}: {solver} / exact", []).append(seconds / plan.latency_seconds)
    figures = [figure(name, ratios) for name, ratios in found.items()]
    figures += [
        figure(f"{name}, share of fleets above 1.03", [sum(ratio > 1.03 for ratio in ratios) / len(ratios)])
        for name, ratios in found.items()
    ]
    show(figures)
    write(
        "cooperation",
        "planned_fleets",
        {"fleets": {KIND[what]: PLACES[what].words for what in PLACES}, "figures": figures},
    )


KIND = {"prediction": "6 on radio", "plans": "4 on a cable, 4 on radio"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prediction", "plans", "planned"])
    parser.add_argument("--rounds", type=int, help="[default: 50 for prediction, 24 for plans]")
    parser.add_argument("--discard", type=int, default=5, help="prediction: rounds before, not counted")
    parser.add_argument("--seeds", type=int, default=3, help="plans")
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, help="plans")
    parser.add_argument("--show", action="store_true", help="plans: only the table of what is on file")
    arguments = parser.parse_args()
    if arguments.show:
        print(report_cooperation.plans(report_cooperation.read(PATH)))
        return
    torch.set_num_threads(1)
    begun = time.monotonic()
    if arguments.what == "planned":
        planned(100)
    elif arguments.what == "prediction":
        prediction(arguments.rounds or 50, arguments.discard)
    else:
        plans(arguments.rounds or 24, arguments.seeds, arguments.solvers)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
