"""``taskedge cooperate join``: a device."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.cli.config_options import note
from taskedge.cli.cooperate.shared import asked, task_options

if TYPE_CHECKING:
    from taskedge.cooperation.transport.nats.nats_links import NatsDeviceLink

TROUBLE_SECONDS = 5.0


@click.command(
    "join",
    short_help="Take part with this machine and its data.",
    epilog="""\b
Examples:
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --text review --label sentiment
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --class neg --class pos --stay
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv --unit
""",
)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The folder that `enrol` made.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Data of this device; it stays here.")
@task_options
@click.option("--profile", type=click.Path(path_type=Path), help="What `taskedge measure` found here, for the plan.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--emulate", is_flag=True, help="Be as slow as the plan takes this device for (docs/cooperation-commands.md)."
)
@click.option("--stay", is_flag=True, help="Wait for the next run when one is done.")
@click.option("--unit", is_flag=True, help="Print a systemd unit that does this from the start of the machine on.")
def command(
    bundle: Path,
    data: Path,
    profile: Path | None,
    threads: int | None,
    emulate: bool,
    stay: bool,
    unit: bool,
    **flags: Any,
) -> None:
    """Take part in the runs of a fleet with this machine and its data, until the run is done.

    What leaves the machine: sums over its data that the choice of weights needs, gradients or values of the chosen
    weights, and how long it took. No row of the data.
    """
    if unit:
        click.echo(_unit(bundle, data, profile, {"threads": threads, "emulate": emulate} | flags), nl=False)
        return
    from taskedge.cooperation.fleet.bundle import Bundle
    from taskedge.profiling.profile_file import read_profile

    opened = Bundle.open(bundle)
    known = read_profile(profile) if profile else None

    import asyncio

    import torch

    from taskedge.cooperation.device.device import Device
    from taskedge.cooperation.joint_task import joint_task
    from taskedge.cooperation.transport.emulated import EmulatedLink
    from taskedge.cooperation.transport.nats.nats_links import NatsDeviceLink

    if threads is not None:
        torch.set_num_threads(threads)
    joint = joint_task(asked(flags, data), note)
    training = joint.training()
    note(f"{opened.name}: {len(training.rows):,} rows; waits for the coordinator of {opened.fleet} at {opened.server}")

    async def take_part() -> None:
        link = NatsDeviceLink(bundle)
        end = EmulatedLink(link, note) if emulate else link
        device = Device(end, training, profile=known, labels=joint.labels, on_hung=lambda: os._exit(1), say=note)
        trouble = asyncio.create_task(_tell_trouble(link))
        try:
            await device.serve(stay=stay)
        finally:
            trouble.cancel()

    asyncio.run(take_part())
    note("the run is done")


async def _tell_trouble(link: NatsDeviceLink) -> None:
    """A line where there is no connection, and why."""
    import asyncio

    told = None
    while True:
        await asyncio.sleep(TROUBLE_SECONDS)
        if link.trouble and link.trouble != told:
            note(f"no connection ({link.trouble}): keeps trying")
        told = link.trouble


def _unit(bundle: Path, data: Path, profile: Path | None, flags: dict[str, Any]) -> str:
    """The unit of this command, with whole paths: systemd starts it elsewhere."""
    from taskedge.cooperation.fleet.bundle import Bundle
    from taskedge.cooperation.fleet.systemd import device_unit

    model = Path(flags["model"])
    flags = flags | {"model": model.resolve() if model.is_dir() else flags["model"]}
    named = {"bundle": bundle.resolve(), "data": data.resolve(), "profile": profile and profile.resolve()}
    words = joining(named | flags)
    return device_unit(Bundle.open(bundle).name, [*words, "--stay"], getpass.getuser())


def joining(options: dict[str, Any]) -> list[str]:
    """A command that joins with these options; those that are None, empty or False are left out."""
    words = [sys.executable, "-m", "taskedge.cli.main", "cooperate", "join"]
    for name, value in options.items():
        flag = "--class" if name == "classes" else f"--{name.replace('_', '-')}"
        every = value if isinstance(value, list | tuple) else [value]
        words += [flag if one is True else f"{flag}={one}" for one in every if one is not None and one is not False]
    return words
