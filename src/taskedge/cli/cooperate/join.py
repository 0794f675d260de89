"""``taskedge cooperate join``: a device."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.cooperate.cooperate_options import model_option, task_options, task_spec_from_flags
from taskedge.cli.cooperate.privacy_options import account_from_flags, min_rows_option, privacy_line, privacy_options
from taskedge.cli.shared_options import print_status

if TYPE_CHECKING:
    from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink

TROUBLE_SECONDS = 5.0
"""Seconds between two checks of the connection."""


@click.command(
    "join",
    short_help="Take part with this machine and its data.",
    epilog="""\b
Examples:
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --text review --label sentiment
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --class neg --class pos --stay
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --dp-epsilon 8
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --unit
""",
)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Folder that `enrol` created.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Data of this device; it stays here.")
@model_option()
@task_options
@min_rows_option
@privacy_options
@click.option("--profile", type=click.Path(path_type=Path), help="Result of `taskedge measure` here, for the plan.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--emulate",
    is_flag=True,
    help="Slow down to the speed that the plan assumes for this device (docs/cooperation-commands.md).",
)
@click.option("--stay", is_flag=True, help="When a run is done, wait for the next one.")
@click.option("--unit", is_flag=True, help="Print a systemd unit that runs this command from boot on, and exit.")
def command(
    bundle: Path,
    data: Path,
    profile: Path | None,
    threads: int | None,
    emulate: bool,
    stay: bool,
    unit: bool,
    min_rows: int,
    **flags: Any,
) -> None:
    """Take part in the runs of a fleet with this machine and its data, until the run is done.

    The machine sends sums over its data for the choice of weights, gradients or values of the chosen weights, losses
    and durations. It sends no row, but what it sends is computed from rows and labels and reveals something about them,
    the more the fewer rows a step has (docs/privacy.md). --min-rows sets a floor, --dp-epsilon a limit that is proved.
    """
    if unit:
        click.echo(
            _unit(bundle, data, profile, {"threads": threads, "emulate": emulate, "min_rows": min_rows} | flags),
            nl=False,
        )
        return
    from taskedge.cooperation.transport.nats.bundle import Bundle
    from taskedge.profiling.profile_file import read_profile

    identity = Bundle.open(bundle)
    measured = read_profile(profile) if profile else None

    import asyncio

    import torch

    from taskedge.cooperation.device.device import Device
    from taskedge.cooperation.joint_task import joint_task
    from taskedge.cooperation.transport.emulated import EmulatedLink
    from taskedge.cooperation.transport.nats.device_link import NatsDeviceLink

    if threads is not None:
        torch.set_num_threads(threads)
    account = account_from_flags(flags, bundle)
    joint = joint_task(task_spec_from_flags(flags, data), print_status)
    training = joint.local_training(min_rows=min_rows, account=account)
    print_status(
        f"{identity.name}: {len(training.rows):,} rows; waits for the coordinator of {identity.fleet} at "
        f"{identity.server}"
    )
    print_status(privacy_line(training))

    async def take_part() -> None:
        nats_link = NatsDeviceLink(bundle)
        device = Device(
            EmulatedLink(nats_link, print_status) if emulate else nats_link,
            training,
            profile=measured,
            labels=joint.labels,
            on_hung=lambda: os._exit(1),
            log=print_status,
        )
        reporting = asyncio.create_task(_report_trouble(nats_link))
        try:
            await device.serve(stay=stay)
        finally:
            reporting.cancel()

    asyncio.run(take_part())
    print_status("the run is done")


async def _report_trouble(link: NatsDeviceLink) -> None:
    """Print a line when the connection is lost, and why."""
    import asyncio

    reported = None
    while True:
        await asyncio.sleep(TROUBLE_SECONDS)
        if link.trouble and link.trouble != reported:
            print_status(f"no connection ({link.trouble}): keeps trying")
        reported = link.trouble


def _unit(bundle: Path, data: Path, profile: Path | None, flags: dict[str, Any]) -> str:
    """Return the unit of this command, with absolute paths: systemd starts it in another folder."""
    from taskedge.cooperation.fleet.systemd import device_unit
    from taskedge.cooperation.transport.nats.bundle import Bundle

    model = Path(flags["model"])
    flags = flags | {"model": model.resolve() if model.exists() else flags["model"]}
    paths = {"bundle": bundle.resolve(), "data": data.resolve(), "profile": profile and profile.resolve()}
    command_line = join_command(paths | flags)
    return device_unit(Bundle.open(bundle).name, [*command_line, "--stay"], getpass.getuser())


def join_command(options: dict[str, Any]) -> list[str]:
    """Return a command line that joins with these options. Options with None, an empty list or False are left out."""
    words = [sys.executable, "-m", "taskedge.cli.main", "cooperate", "join"]
    for name, value in options.items():
        flag = "--class" if name == "classes" else f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is True:
                words.append(flag)
            elif item is not None and item is not False:
                words.append(f"{flag}={item}")
    return words
