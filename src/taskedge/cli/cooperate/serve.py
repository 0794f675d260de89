"""``taskedge cooperate serve``: the coordinator."""

from __future__ import annotations

import getpass
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.cooperate.cooperate_options import (
    eval_option,
    fleet_folder,
    folder_option,
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
from taskedge.cli.shared_options import (
    force_option,
    given_flags,
    json_option,
    options_of,
    print_status,
    refuse_existing,
)
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.errors import InputError, Interrupted

if TYPE_CHECKING:
    from taskedge.cli.cooperate.run_summary import RunSummary
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.cooperation.joint_task import TaskSpec
    from taskedge.planning.fleet_spec import FleetSpec
    from taskedge.planning.plan import Plan


@click.command(
    "serve",
    short_help="Coordinate a run on a fleet.",
    epilog="""\b
Examples:
  taskedge cooperate serve --model ./minilm --class neg --class pos --devices 3
  taskedge cooperate serve --model ./minilm --eval heldout.csv --fleet fleet.toml --rounds 200
  taskedge cooperate serve --model ./minilm --eval heldout.csv --fleet fleet.toml --plan plan.json
  taskedge cooperate serve --model ./minilm --class neg --class pos --devices 3 --resume
  taskedge cooperate serve --unit
""",
)
@folder_option
@model_option(required=False)
@task_options
@eval_option
@click.option("--fleet", "fleet_path", type=click.Path(path_type=Path), help="Fleet file: costs and links of devices.")
@plan_option
@options_of(CooperationConfig)
@out_option
@resume_option
@traffic_option
@force_option
@json_option
@click.option("--unit", is_flag=True, help="Print a systemd unit that runs the fleet's server from boot on, and exit.")
def command(
    folder: Path | None,
    eval_path: Path | None,
    fleet_path: Path | None,
    plan_path: Path | None,
    out: Path,
    resume: bool,
    show_traffic: bool,
    force: bool,
    as_json: bool,
    unit: bool,
    **flags: Any,
) -> None:
    """Coordinate a run on the devices of a fleet, and write the result as a delta file.

    Starts the fleet's server, or finds it running. The server keeps running afterwards, so that devices stay connected.
    No data is needed here: name the classes, or give labeled examples with --eval. A run that was stopped, by whatever
    means, is resumed with --resume.
    """
    if unit:
        click.echo(_unit(fleet_folder(folder)), nl=False)
        return
    if flags["model"] is None:
        raise click.MissingParameter(param_type="option", param_hint="'--model'")
    refuse_existing([out], force or resume)
    spec = task_spec_from_flags(flags, eval_path)
    plan = load_plan(plan_path)
    if plan is not None and flags["devices"] is None:
        flags["devices"] = len(plan.parts)
    config = CooperationConfig(**given_flags(flags))
    fleet = load_fleet_spec(fleet_path)
    path = fleet_folder(folder)

    from taskedge.cooperation.coordinator.event_log import RUN_FILE
    from taskedge.cooperation.fleet.coordinator_lock import hold_coordinator_lock
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.cooperation.fleet.fleet_status import LAST_RUN, RUN_FOLDER

    registry, run_folder = DeviceRegistry.open(path), path / RUN_FOLDER
    if not registry.devices:
        raise InputError(f"{path}: nobody is enrolled: taskedge cooperate enrol DEVICE makes a device's keys")
    with hold_coordinator_lock(path), sigterm_as_interrupt():
        if (run_folder / RUN_FILE).exists() and not resume:
            if not force:
                raise InputError(
                    f"{run_folder} holds an interrupted run: continue with --resume, or start anew with --force"
                )
            shutil.rmtree(run_folder)
        server = registry.start_server()
        print_status(f"the server listens on {registry.listen}:{registry.port} (process {server.pid})")
        try:
            spec = replace(spec, seed=config.seed)
            summary = _run(registry, spec, config, run_folder, fleet, plan, out, resume=resume)
        except KeyboardInterrupt:
            if (run_folder / RUN_FILE).exists():
                raise Interrupted("interrupted: continue with --resume") from None
            raise
        shutil.rmtree(path / LAST_RUN, ignore_errors=True)
        run_folder.rename(path / LAST_RUN)
    summary.print_summary(show_traffic=show_traffic, as_json=as_json)
    print_status("the server keeps running for the devices; `taskedge cooperate stop` ends it")


def _run(
    registry: DeviceRegistry,
    spec: TaskSpec,
    config: CooperationConfig,
    run_folder: Path,
    fleet: FleetSpec | None,
    plan: Plan | None,
    out: Path,
    *,
    resume: bool,
) -> RunSummary:
    import asyncio

    from taskedge.cli.cooperate.event_display import RoundLines
    from taskedge.cli.cooperate.run_summary import finish_run
    from taskedge.cooperation.fleet.nats_run import run_over_nats
    from taskedge.cooperation.joint_task import joint_task

    joint = joint_task(spec, print_status)
    running = run_over_nats(
        registry,
        joint,
        config,
        run_folder,
        resume=resume,
        fleet=fleet,
        plan=plan,
        on_event=RoundLines(config.rounds),
    )
    return finish_run(joint, asyncio.run(running), out, joint.table, config.batch_size)


def _unit(folder: Path) -> str:
    """Return the unit of the server of the fleet in ``folder``."""
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.cooperation.fleet.systemd import server_unit
    from taskedge.cooperation.transport.nats.server import find_server

    registry = DeviceRegistry.open(folder)
    return server_unit(registry.name, folder, find_server().resolve(), getpass.getuser())
