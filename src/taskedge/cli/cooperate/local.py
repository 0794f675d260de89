"""``taskedge cooperate local``: a whole fleet on this machine, with real processes and a real server."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.config_options import force_option, given, json_option, note, options_of
from taskedge.cli.cooperate.join import joining
from taskedge.cli.cooperate.shared import (
    asked,
    described,
    eval_option,
    out_option,
    resume_option,
    task_options,
    told_to_end,
    traffic_option,
)
from taskedge.cli.plan_options import refuse_existing
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.errors import InputError, Interrupted, TaskEdgeError

if TYPE_CHECKING:
    from taskedge.cli.cooperate.finish import Finished
    from taskedge.cooperation.coordinator.event_log import Event
    from taskedge.cooperation.coordinator.nats_run import Led
    from taskedge.cooperation.fleet.device_registry import Fleet
    from taskedge.cooperation.fleet.local_processes import Processes
    from taskedge.cooperation.joint_task import Asked, JointTask
    from taskedge.planning.fleet_spec import Fleet as Described

DEVICES = 4
WAIT_SECONDS = 600.0
"""For devices that all load their models on one machine at once; one that ends is noticed at once."""
GOODBYE_SECONDS = 10.0
WATCH_SECONDS = 0.2


@click.command(
    "local",
    short_help="A whole fleet on this machine.",
    epilog="""\b
Examples:
  taskedge cooperate local --model ./minilm --train reviews.csv --text review --label sentiment
  taskedge cooperate local --model ./minilm --train reviews.csv --devices 2 --mode fedavg --skew --eval heldout.csv
  taskedge cooperate local --model ./minilm --train reviews.csv --fleet fleet.toml --rounds 50 --show-traffic
  taskedge cooperate local --model ./minilm --train reviews.csv --fleet fleet.toml --emulate --solver equal
""",
)
@task_options
@click.option("--train", required=True, type=click.Path(path_type=Path), help="Training data, split among the devices.")
@eval_option
@click.option("--skew", is_flag=True, help="Split by label, so that each device has few of the classes.")
@click.option("--fleet", type=click.Path(path_type=Path), help="Fleet file: names, speeds and links of the devices.")
@click.option("--emulate", is_flag=True, help="Make each device as slow as the fleet file says.")
@click.option(
    "--devices",
    type=click.IntRange(1),
    help=f"How many devices.  [default: {DEVICES}, or those of the fleet file]",
)
@click.option(
    "--wait-seconds",
    default=WAIT_SECONDS,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="How long to wait for devices, before the run gives up.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each device.  [default: an even share]")
@options_of(CooperateSettings, "devices", "wait_seconds")
@out_option
@resume_option
@traffic_option
@force_option
@json_option
def command(
    train: Path,
    held_out: Path | None,
    skew: bool,
    fleet: Path | None,
    emulate: bool,
    devices: int | None,
    threads: int | None,
    out: Path,
    resume: bool,
    show_traffic: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train on several devices that are processes of this machine, and write what they learnt as a delta file.

    Starts a server on loopback with keys of its own, splits the data, starts a `taskedge cooperate join` for each
    device, and ends them all when it ends. What an interrupted run leaves is in OUT.run and goes on with --resume.
    """
    refuse_existing([out], force or resume)
    wanted = asked(flags, train)
    known = described(fleet)
    if emulate and known is None:
        raise InputError("--emulate: name the fleet file that says how slow the devices are, with --fleet")
    names = _names(devices, known)
    settings = CooperateSettings(**given(flags), devices=len(names))
    wanted = replace(wanted, seed=settings.seed)
    folder = out.with_name(f"{out.name}.run")
    _make_room(folder, resume=resume, force=force)
    threads = threads or max(1, (os.cpu_count() or 1) // len(names))

    from taskedge.cooperation.coordinator.event_log import RUN
    from taskedge.cooperation.fleet.coordinator_lock import sole
    from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER

    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with sole(folder), told_to_end():
            how = {"threads": threads, "emulate": emulate}
            finished = _run(wanted, settings, names, folder, known, held_out, out, how, resume=resume, skew=skew)
    except BaseException as error:
        if not (folder / RUN_FOLDER / RUN).exists():
            shutil.rmtree(folder, ignore_errors=True)  # nothing that could go on
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted: go on with --resume") from None
        raise
    shutil.rmtree(folder, ignore_errors=True)
    finished.tell(show_traffic=show_traffic, as_json=as_json)


def _names(devices: int | None, known: Described | None) -> list[str]:
    """Of the devices: the fleet file's first ones, or numbers."""
    if known is None:
        return [f"device-{number}" for number in range(1, (devices or DEVICES) + 1)]
    named = [device.name for device in known.device]
    if devices is not None and devices > len(named):
        raise InputError(f"--devices {devices}: the fleet file describes {len(named)}")
    return named[:devices]


def _make_room(folder: Path, *, resume: bool, force: bool) -> None:
    from taskedge.cooperation.coordinator.event_log import RUN
    from taskedge.cooperation.fleet.coordinator_lock import coordinated
    from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER

    if coordinated(folder):
        raise InputError(f"{folder}: a run goes on there: name another file with --out")
    there = (folder / RUN_FOLDER / RUN).exists()
    if there and resume:
        return
    if resume:
        raise InputError(f"{folder} holds no run to resume: leave out --resume to begin one")
    if not force and (there or (folder / "settings.json").exists()):
        raise InputError(f"{folder} holds an interrupted run: go on with --resume, or start anew with --force")
    shutil.rmtree(folder, ignore_errors=True)


def _run(
    wanted: Asked,
    settings: CooperateSettings,
    names: Sequence[str],
    folder: Path,
    known: Described | None,
    held_out: Path | None,
    out: Path,
    how: dict[str, Any],
    *,
    resume: bool,
    skew: bool,
) -> Finished:
    """``how``: options of the devices' processes."""
    from taskedge.cli.cooperate.finish import finish
    from taskedge.cli.cooperate.screen import TaskTable
    from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER
    from taskedge.cooperation.fleet.split_data import write_parts
    from taskedge.cooperation.joint_task import joint_task, read_like

    joint = joint_task(wanted, note)
    measured = read_like(joint, held_out, note) if held_out else None
    parts = folder / "parts"
    columns = write_parts(joint, parts, names, skew=skew, seed=settings.seed, same=resume)

    def command_of(name: str, bundle: Path) -> list[str]:
        about = {"model": wanted.model, "task": joint.task.name, "classes": joint.labels, **columns.named}
        about |= {"max_length": joint.max_length or None, **how}
        return joining({"bundle": bundle, "data": parts / f"{name}.jsonl", **about})

    show = TaskTable()
    with _fleet_here(folder, names, command_of, how["threads"]) as (fleet, processes):
        led = asyncio.run(_watched(fleet, processes, joint, settings, folder / RUN_FOLDER, known, show, resume=resume))
        processes.stop(GOODBYE_SECONDS)  # they end by themselves
    return finish(joint, led, out, measured, settings.batch_size)


@contextmanager
def _fleet_here(
    folder: Path, names: Sequence[str], command_of: Callable[[str, Path], list[str]], threads: int
) -> Iterator[tuple[Fleet, Processes]]:
    """A fleet with new keys, its server, and a process for each device; all of it is gone afterwards."""
    from taskedge.cooperation.fleet.device_registry import Fleet
    from taskedge.cooperation.fleet.fleet_status import FLEET_FOLDER
    from taskedge.cooperation.fleet.local_processes import Processes
    from taskedge.cooperation.transport.nats.server import free_port

    place, logs = folder / FLEET_FOLDER, folder / "logs"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    logs.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    fleet, processes = Fleet.create(place, name="local", port=free_port()), Processes()
    bundles = {name: fleet.enrol(name) for name in names}
    server = fleet.start_server()
    try:
        processes.guard(server.pid)
        for name in names:
            processes.start(name, command_of(name, bundles[name]), logs / f"{name}.log", environment)
        processes.guard(server.pid)
        note(f"started {len(names)} devices: {', '.join(names)}")
        yield fleet, processes
    finally:
        processes.stop()
        server.stop()
        processes.end()
        shutil.rmtree(place, ignore_errors=True)


async def _watched(
    fleet: Fleet,
    processes: Processes,
    joint: JointTask,
    settings: CooperateSettings,
    run: Path,
    known: Described | None,
    show: Callable[[Event], None],
    *,
    resume: bool,
) -> Led:
    """The run, which ends at once when a device cannot even begin, or when all have ended."""
    from taskedge.cooperation.coordinator.nats_run import lead

    begun = asyncio.Event()

    def on_event(event: Event) -> None:
        show(event)
        if event["event"] == "round":
            begun.set()

    running = asyncio.create_task(lead(fleet, joint, settings, run, resume=resume, described=known, on_event=on_event))
    try:
        while not running.done():
            await asyncio.wait([running], timeout=WATCH_SECONDS)
            failed = processes.failed()
            if failed and not running.done() and not (begun.is_set() and processes.running()):
                raise TaskEdgeError("; ".join(f"{name} ended: {why}" for name, why in failed.items()))
        return running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
