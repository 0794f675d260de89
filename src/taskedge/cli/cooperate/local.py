"""``taskedge cooperate local``: a whole fleet on this machine, with real processes and a real server."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.cooperate.cooperate_options import (
    eval_option,
    load_fleet_spec,
    load_plan,
    model_option,
    out_option,
    plan_option,
    resume_option,
    sigterm_as_interrupt,
    task_options,
    task_spec_from_flags,
    traffic_option,
)
from taskedge.cli.cooperate.join import join_command
from taskedge.cli.shared_options import (
    force_option,
    given_flags,
    json_option,
    options_of,
    print_status,
    refuse_existing,
)
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.errors import InputError, Interrupted, TaskEdgeError
from taskedge.io.lock import hold_lock

if TYPE_CHECKING:
    from taskedge.cli.cooperate.run_summary import RunSummary
    from taskedge.cooperation.coordinator.event_log import Event
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.cooperation.fleet.local_processes import LocalProcesses
    from taskedge.cooperation.fleet.nats_run import CoordinatorOutcome
    from taskedge.cooperation.joint_task import TaskSpec
    from taskedge.planning.fleet_spec import FleetSpec
    from taskedge.planning.plan import Plan

DEVICES = 4
WAIT_SECONDS = 600.0
"""All devices load their models on one machine at once. A device that ends is noticed at once."""
GOODBYE_SECONDS = 10.0
"""Seconds that the devices have to end by themselves after the run."""
WATCH_SECONDS = 0.2
"""Seconds between two checks of the devices' processes."""


@click.command(
    "local",
    short_help="Run a whole fleet on this machine.",
    epilog="""\b
Examples:
  taskedge cooperate local --model ./minilm --train reviews.csv --text review --label sentiment
  taskedge cooperate local --model ./minilm --train reviews.csv --devices 2 --mode fedavg --skew --eval heldout.csv
  taskedge cooperate local --model ./minilm --train reviews.csv --fleet fleet.toml --rounds 50 --show-traffic
  taskedge cooperate local --model ./minilm --train reviews.csv --fleet fleet.toml --plan plan.json
  taskedge cooperate local --model ./minilm --train reviews.csv --fleet fleet.toml --emulate --solver equal
""",
)
@model_option()
@task_options
@click.option("--train", required=True, type=click.Path(path_type=Path), help="Training data, split among the devices.")
@eval_option
@click.option("--skew", is_flag=True, help="Split by label, so that each device has few of the classes.")
@click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=Path),
    help="Fleet file: names, speeds and links of the devices.",
)
@plan_option
@click.option("--emulate", is_flag=True, help="Slow each device down to its speed in the fleet file.")
@click.option(
    "--devices",
    type=click.IntRange(1),
    help=f"Number of devices.  [default: {DEVICES}, or all in the fleet file or the plan]",
)
@click.option(
    "--wait-seconds",
    default=WAIT_SECONDS,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for devices before the run stops.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each device.  [default: an even share]")
@options_of(CooperationConfig, "devices", "wait_seconds")
@out_option
@resume_option
@traffic_option
@force_option
@json_option
def command(
    train: Path,
    eval_path: Path | None,
    skew: bool,
    fleet_path: Path | None,
    plan_path: Path | None,
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
    """Train on several devices that are processes of this machine, and write the result as a delta file.

    Starts a server on loopback with keys of its own, splits the data, starts a `taskedge cooperate join` for each
    device, and ends them all when it ends. An interrupted run stays in OUT.run and is resumed with --resume.
    """
    refuse_existing([out], force or resume)
    spec = task_spec_from_flags(flags, train)
    fleet, plan = load_fleet_spec(fleet_path), load_plan(plan_path)
    if emulate and fleet is None:
        raise InputError("--emulate: name the fleet file with the devices' speeds, with --fleet")
    names = device_names(devices, fleet, plan)
    config = CooperationConfig(**given_flags(flags), devices=len(names))
    folder = out.with_name(f"{out.name}.run")
    for path in (folder, out):  # `tune` may work there; other verbs lock the output
        click.get_current_context().with_resource(hold_lock(path))
    _prepare_folder(folder, resume=resume, force=force)

    from taskedge.cooperation.coordinator.event_log import RUN_FILE
    from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
    from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER

    run = _LocalRun(
        spec=replace(spec, seed=config.seed),
        config=config,
        names=names,
        folder=folder,
        fleet=fleet,
        plan=plan,
        threads=threads or max(1, (os.cpu_count() or 1) // len(names)),
        emulate=emulate,
        resume=resume,
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with hold_coordinator_lock(folder), sigterm_as_interrupt():
            summary = run.run(eval_path, out, skew=skew)
    except BaseException as error:
        if not (folder / RUN_FOLDER / RUN_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # there is nothing to resume
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted: continue with --resume") from None
        raise
    shutil.rmtree(folder, ignore_errors=True)
    summary.print_summary(show_traffic=show_traffic, as_json=as_json)


def device_names(devices: int | None, fleet: FleetSpec | None, plan: Plan | None = None) -> list[str]:
    """Return the names of the devices: the first ones of the fleet file, else of the plan, else numbered ones.

    Args:
        devices: Number of devices; None for all that the fleet file or the plan names.
        fleet: The fleet file.
        plan: The plan.

    Raises:
        InputError: There are more ``devices`` than names.
    """
    if fleet is not None:
        names, source = [device.name for device in fleet.device], "the fleet file describes"
    elif plan is not None:
        names, source = [*(part.device for part in plan.parts), *plan.idle], "the plan names"
    else:
        return [f"device-{number}" for number in range(1, (devices or DEVICES) + 1)]
    if devices is not None and devices > len(names):
        raise InputError(f"--devices {devices}: {source} {len(names)}")
    return names[:devices]


def _prepare_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Check that the folder can be used, and remove what an earlier run left if it is not resumed."""
    from taskedge.cooperation.coordinator.event_log import RUN_FILE
    from taskedge.cooperation.fleet.coordinator_lock import is_coordinated
    from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER

    if is_coordinated(folder):
        raise InputError(f"{folder}: a run is in progress there: name another file with --out")
    has_run = (folder / RUN_FOLDER / RUN_FILE).exists()
    if has_run and resume:
        return
    if resume:
        raise InputError(f"{folder} holds no run to resume: leave out --resume to begin one")
    has_other_run = (folder / "settings.json").exists()  # of `taskedge tune`
    if not force and (has_run or has_other_run):
        raise InputError(f"{folder} holds an interrupted run: continue with --resume, or start anew with --force")
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _LocalRun:
    """A run on this machine."""

    spec: TaskSpec
    config: CooperationConfig
    names: Sequence[str]
    folder: Path
    fleet: FleetSpec | None
    plan: Plan | None
    threads: int
    """CPU threads of each device."""
    emulate: bool
    resume: bool

    def run(self, eval_path: Path | None, out: Path, *, skew: bool) -> RunSummary:
        """Split the data, start the fleet, run all rounds, and write the delta."""
        from taskedge.cli.cooperate.event_display import TaskTable
        from taskedge.cli.cooperate.run_summary import finish_run
        from taskedge.cooperation.fleet.fleet_status import RUN_FOLDER
        from taskedge.cooperation.fleet.nats_run import run_over_nats
        from taskedge.cooperation.fleet.split_data import write_parts
        from taskedge.cooperation.joint_task import joint_task, read_table_like

        joint = joint_task(self.spec, print_status)
        eval_table = read_table_like(joint, eval_path, print_status) if eval_path else None
        parts = self.folder / "parts"
        columns = write_parts(joint, parts, self.names, skew=skew, seed=self.config.seed, must_match=self.resume)
        options = {
            "model": self.spec.model,
            "task": joint.task.name,
            "classes": joint.labels,
            **columns.named,
            "max_length": joint.max_length or None,
            "threads": self.threads,
            "min_rows": 1,  # all data are of one owner, who is the coordinator as well
            "emulate": self.emulate,
        }

        def command_of(name: str, bundle: Path) -> list[str]:
            return join_command({"bundle": bundle, "data": parts / f"{name}.jsonl", **options})

        with self._started_fleet(command_of) as (registry, processes):
            outcome = asyncio.run(
                _watched(
                    processes,
                    TaskTable(),
                    lambda on_event: run_over_nats(
                        registry,
                        joint,
                        self.config,
                        self.folder / RUN_FOLDER,
                        resume=self.resume,
                        fleet=self.fleet,
                        plan=self.plan,
                        on_event=on_event,
                        on_server_started=processes.guard,
                    ),
                )
            )
            processes.stop(GOODBYE_SECONDS)
        return finish_run(joint, outcome, out, eval_table, self.config.batch_size)

    @contextmanager
    def _started_fleet(
        self, command_of: Callable[[str, Path], list[str]]
    ) -> Iterator[tuple[DeviceRegistry, LocalProcesses]]:
        """Start a fleet with new keys, its server, and a process for each device. End and remove all of it at the end.

        Args:
            command_of: Returns the command line of a device, from its name and the folder with its keys.
        """
        from taskedge.cooperation.fleet.device_registry import DeviceRegistry
        from taskedge.cooperation.fleet.fleet_status import FLEET_FOLDER
        from taskedge.cooperation.fleet.local_processes import LocalProcesses
        from taskedge.cooperation.transport.nats.server import free_port

        fleet_path, logs = self.folder / FLEET_FOLDER, self.folder / "logs"
        shutil.rmtree(fleet_path, ignore_errors=True)  # of a run that was killed
        logs.mkdir(exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        registry, processes = DeviceRegistry.create(fleet_path, name="local", port=free_port()), LocalProcesses()
        bundles = {name: registry.enroll(name) for name in self.names}
        server = registry.start_server()
        try:
            processes.guard(server.pid)
            for name in self.names:
                processes.start(name, command_of(name, bundles[name]), logs / f"{name}.log", environment)
            processes.guard(server.pid)
            print_status(f"started {len(self.names)} devices: {', '.join(self.names)}")
            yield registry, processes
        finally:
            processes.stop()
            server.stop()
            processes.end_guard()
            shutil.rmtree(fleet_path, ignore_errors=True)


async def _watched(
    processes: LocalProcesses,
    show: Callable[[Event], None],
    start: Callable[[Callable[[Event], None]], Coroutine[Any, Any, CoordinatorOutcome]],
) -> CoordinatorOutcome:
    """Run the coordinator, and stop at once if a device ends before the first round, or if all devices have ended.

    Args:
        processes: The devices.
        show: Called with each event.
        start: Returns the coordinator's run, from the function that it calls with each event.
    """
    has_completed_round = False

    def on_event(event: Event) -> None:
        nonlocal has_completed_round
        show(event)
        if event["event"] == "round":
            has_completed_round = True

    running = asyncio.create_task(start(on_event))
    try:
        while not running.done():
            await asyncio.wait([running], timeout=WATCH_SECONDS)
            failures = processes.failures()
            can_continue = has_completed_round and processes.running()
            if failures and not running.done() and not can_continue:
                raise TaskEdgeError("; ".join(f"{name} ended: {reason}" for name, reason in failures.items()))
        return running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
