"""``taskedge cooperate serve``: the coordinator."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.config_options import force_option, given, json_option, note, options_of
from taskedge.cli.cooperate.shared import (
    asked,
    described,
    eval_option,
    fleet_folder,
    folder_option,
    out_option,
    resume_option,
    task_options,
    told_to_end,
    traffic_option,
)
from taskedge.cli.plan_options import refuse_existing
from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.errors import InputError, Interrupted

if TYPE_CHECKING:
    from taskedge.cli.cooperate.finish import Finished
    from taskedge.cooperation.fleet.device_registry import Fleet
    from taskedge.cooperation.joint_task import Asked


@click.command(
    "serve",
    short_help="Coordinate a run on a fleet.",
    epilog="""\b
Examples:
  taskedge cooperate serve --model ./minilm --class neg --class pos --devices 3
  taskedge cooperate serve --model ./minilm --eval heldout.csv --fleet fleet.toml --rounds 200
  taskedge cooperate serve --model ./minilm --class neg --class pos --devices 3 --resume
""",
)
@folder_option
@task_options
@eval_option
@click.option("--fleet", type=click.Path(path_type=Path), help="Fleet file: what devices and links are like.")
@options_of(CooperateSettings)
@out_option
@resume_option
@traffic_option
@force_option
@json_option
def command(
    folder: Path | None,
    held_out: Path | None,
    fleet: Path | None,
    out: Path,
    resume: bool,
    show_traffic: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Coordinate a run on the devices of a fleet, and write what it learnt as a delta file.

    Starts the fleet's server, or finds it running; it keeps running afterwards, so that devices stay connected. No data
    is needed here: name the classes, or give labelled examples with --eval. A run that was stopped, however it
    was, goes on with --resume.
    """
    refuse_existing([out], force or resume)
    wanted = asked(flags, held_out)
    settings = CooperateSettings(**given(flags))
    place = fleet_folder(folder)

    from taskedge.cooperation.coordinator.event_log import RUN
    from taskedge.cooperation.fleet.coordinator_lock import sole
    from taskedge.cooperation.fleet.device_registry import Fleet
    from taskedge.cooperation.fleet.fleet_status import LAST_RUN, RUN_FOLDER

    opened, run = Fleet.open(place), place / RUN_FOLDER
    if not opened.devices:
        raise InputError(f"{place}: nobody is enrolled: taskedge cooperate enrol DEVICE makes a device's keys")
    with sole(place), told_to_end():
        if (run / RUN).exists() and not resume:
            if not force:
                raise InputError(f"{run} holds an interrupted run: go on with --resume, or start anew with --force")
            shutil.rmtree(run)
        server = opened.start_server()
        note(f"the server listens on {opened.listen}:{opened.port} (process {server.pid})")
        try:
            finished = _run(opened, replace(wanted, seed=settings.seed), settings, run, fleet, out, resume=resume)
        except KeyboardInterrupt:
            if (run / RUN).exists():
                raise Interrupted("interrupted: go on with --resume") from None
            raise
        shutil.rmtree(place / LAST_RUN, ignore_errors=True)
        run.rename(place / LAST_RUN)
    finished.tell(show_traffic=show_traffic, as_json=as_json)
    note("the server keeps running for the devices; `taskedge cooperate stop` ends it")


def _run(
    opened: Fleet, wanted: Asked, settings: CooperateSettings, run: Path, fleet: Path | None, out: Path, *, resume: bool
) -> Finished:
    import asyncio

    from taskedge.cli.cooperate.finish import finish
    from taskedge.cli.cooperate.screen import RoundLines
    from taskedge.cooperation.coordinator.nats_run import lead
    from taskedge.cooperation.joint_task import joint_task

    known = described(fleet)
    joint = joint_task(wanted, note)
    show = RoundLines(settings.rounds)
    led = asyncio.run(lead(opened, joint, settings, run, resume=resume, described=known, on_event=show))
    return finish(joint, led, out, joint.table, settings.batch_size)
