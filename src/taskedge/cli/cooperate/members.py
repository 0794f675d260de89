"""``taskedge cooperate init``, ``enrol`` and ``revoke``: who belongs to a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import given
from taskedge.cli.cooperate.shared import fleet_folder, folder_option
from taskedge.errors import InputError

EVERYWHERE = ("0.0.0.0", "::")


@click.command(
    short_help="Make a fleet and its keys.",
    epilog="""\b
Examples:
  taskedge cooperate init --name plant-7
  taskedge cooperate init --name plant-7 --host 10.0.0.5 --listen 0.0.0.0
""",
)
@click.option("--name", required=True, help="Name of the fleet.")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder to make.  [default: the name]")
@click.option("--host", "hosts", multiple=True, help="How devices reach this machine; the first goes into bundles.")
@click.option("--listen", help="Address that the server accepts connections on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the server.  [default: 4222]")
def init(name: str, folder: Path | None, hosts: tuple[str, ...], **where: Any) -> None:
    """Make a fleet: its authority, the server's keys and configuration, and the coordinator's identity."""
    from taskedge.cooperation.fleet.device_registry import Fleet

    if where["listen"] in EVERYWHERE and not hosts:
        raise InputError(f"--listen {where['listen']}: say with --host how devices reach this machine")
    fleet = Fleet.create(folder or Path(name), name=name, hosts=hosts, **given(where))
    click.echo(f"{fleet.folder}: made fleet {fleet.name}, whose server will listen on {fleet.listen}:{fleet.port}")
    click.echo("  keep this folder on this machine and to yourself: who has it is the fleet")
    if fleet.listen not in EVERYWHERE and fleet.listen.startswith("127."):
        click.echo("  only this machine can connect: for others, make it with --listen and --host")
    click.echo(f"next: taskedge cooperate enrol DEVICE{_where(folder)}")


@click.command(
    short_help="Let a device take part.",
    epilog="""\b
Examples:
  taskedge cooperate enrol jetson-1
  taskedge cooperate enrol jetson-1 --folder plant-7
""",
)
@click.argument("device")
@folder_option
def enrol(device: str, folder: Path | None) -> None:
    """Let a device take part: makes a folder with its keys; a server that runs knows it at once."""
    from taskedge.cooperation.fleet.device_registry import Fleet

    bundle = Fleet.open(fleet_folder(folder)).enrol(device)
    click.echo(f"{bundle}: the keys of {device}")
    click.echo("  copy the folder to the device over a channel that you trust, then delete it here")
    click.echo(f"next, there: taskedge cooperate join --bundle {device} --model M --data FILE")


@click.command(
    short_help="Cut a device off, now and for good.",
    epilog="""\b
Examples:
  taskedge cooperate revoke jetson-1
  taskedge cooperate revoke jetson-1 --folder plant-7
""",
)
@click.argument("device")
@folder_option
def revoke(device: str, folder: Path | None) -> None:
    """Cut a device off, now and for good: its keys open nothing even when the name is enrolled anew."""
    from taskedge.cooperation.fleet.device_registry import Fleet

    fleet = Fleet.open(fleet_folder(folder))
    fleet.revoke(device)
    running = "the server has cut it off" if fleet.server.pid is not None else "the server does not run now"
    click.echo(f"{device} is out of fleet {fleet.name}: {running}, and its keys are worth nothing")
    click.echo(f"to let it in again with new keys: taskedge cooperate enrol {device}{_where(folder)}")


def _where(folder: Path | None) -> str:
    return f" --folder {folder}" if folder else ""
