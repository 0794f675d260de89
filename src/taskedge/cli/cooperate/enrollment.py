"""``taskedge cooperate init``, ``enrol``, ``revoke`` and ``renew``: the members of a fleet and their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.cooperate.cooperate_options import fleet_folder, folder_option
from taskedge.cli.shared_options import given_flags
from taskedge.errors import InputError

ALL_ADDRESSES = ("0.0.0.0", "::")


@click.command(
    short_help="Create a fleet and its keys.",
    epilog="""\b
Examples:
  taskedge cooperate init --name plant-7
  taskedge cooperate init --name plant-7 --host 10.0.0.5 --listen 0.0.0.0
""",
)
@click.option("--name", required=True, help="Name of the fleet.")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder to create.  [default: the name]")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address by which devices reach this machine; repeatable. The first is written into their bundles.",
)
@click.option("--listen", help="Address that the server accepts connections on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the server.  [default: 4222]")
def init(name: str, folder: Path | None, hosts: tuple[str, ...], **address: Any) -> None:
    """Create a fleet: its authority, the server's keys and configuration, and the coordinator's keys."""
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.io.atomic import require_writable

    target = folder or Path(name)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: name a new folder for the fleet's keys with --folder")
    require_writable(target / "fleet.json" if target.is_dir() else target)  # before keys are made
    if address["listen"] in ALL_ADDRESSES and not hosts:
        raise InputError(f"--listen {address['listen']}: give with --host how devices reach this machine")
    registry = DeviceRegistry.create(target, name=name, hosts=hosts, **given_flags(address))
    click.echo(
        f"{registry.folder}: made fleet {registry.name}, whose server will listen on {registry.listen}:{registry.port}"
    )
    click.echo("  keep this folder on this machine and private: its keys control the fleet")
    if registry.listen.startswith("127."):
        click.echo("  only this machine can connect: for other machines, use --listen and --host")
    click.echo(f"next: taskedge cooperate enrol DEVICE{_folder_flag(folder)}")


@click.command(
    short_help="Add a device.",
    epilog="""\b
Examples:
  taskedge cooperate enrol jetson-1
  taskedge cooperate enrol jetson-1 --folder plant-7
""",
)
@click.argument("device")
@folder_option
def enrol(device: str, folder: Path | None) -> None:
    """Add a device: create a folder with its keys. A running server accepts it at once."""
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry
    from taskedge.io.atomic import require_writable

    registry = DeviceRegistry.open(fleet_folder(folder))
    for part in (registry.folder, registry.folder / "devices"):
        require_writable(part / "keys")  # before keys are made
    bundle = registry.enroll(device)
    click.echo(f"{bundle}: the keys of {device}")
    click.echo("  copy the folder to the device over a channel that you trust, then delete it here")
    click.echo(f"next, there: taskedge cooperate join --bundle {device} --model M --data FILE")


@click.command(
    short_help="Remove a device for good.",
    epilog="""\b
Examples:
  taskedge cooperate revoke jetson-1
  taskedge cooperate revoke jetson-1 --folder plant-7
""",
)
@click.argument("device")
@folder_option
def revoke(device: str, folder: Path | None) -> None:
    """Remove a device for good: its keys are refused even if the name is enrolled again."""
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry

    registry = DeviceRegistry.open(fleet_folder(folder))
    registry.revoke(device)
    effect = "the server has cut it off" if registry.server.pid is not None else "the server does not run now"
    click.echo(f"{device} is out of fleet {registry.name}: {effect}, and its keys are worth nothing")
    click.echo(f"to let it in again with new keys: taskedge cooperate enrol {device}{_folder_flag(folder)}")


@click.command(
    short_help="Replace the keys of server and coordinator.",
    epilog="""\b
Examples:
  taskedge cooperate renew
  taskedge cooperate renew --folder plant-7
""",
)
@folder_option
def renew(folder: Path | None) -> None:
    """Replace the keys of the server and the coordinator, before they expire or if they were exposed.

    A running server and a running coordinator use the new keys at once. Devices keep theirs; to replace those, revoke
    the device and enrol it again.
    """
    from taskedge.cooperation.fleet.device_registry import DeviceRegistry

    path = fleet_folder(folder)
    registry = DeviceRegistry.open(path)
    registry.renew()
    click.echo(f"{path}: new keys for server and coordinator, valid until {registry.coordinator.expires[:10]}")


def _folder_flag(folder: Path | None) -> str:
    return f" --folder {folder}" if folder else ""
