"""``taskedge cooperate status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import json_option, print_json
from taskedge.cli.cooperate.shared import fleet_folder, folder_option


@click.command(
    "status",
    short_help="Who is enrolled and there, and how far the run is.",
    epilog="\b\nExamples:\n  taskedge cooperate status\n  taskedge cooperate status --folder plant-7 --json\n",
)
@folder_option
@json_option
def command(folder: Path | None, as_json: bool) -> None:
    """Say who is enrolled and who is there, and how far the run is. The folder of a local run can be named, too."""
    from taskedge.cooperation.fleet.fleet_status import report

    found = report(fleet_folder(folder))
    if as_json:
        print_json(found)
        return
    server = found["server"]
    click.echo(f"fleet {found['fleet']}, server {server['address']}: {'runs' if server['runs'] else 'does not run'}")
    _print_devices(found["devices"], found["coordinator_runs"])
    run = found["run"]
    if run is None:
        click.echo("no run yet: taskedge cooperate serve begins one")
        return
    loss = "" if run["loss"] is None else f", loss {run['loss']:.4f}"
    click.echo(f"run {run['state']}: round {run['round']} of {run['rounds']}, version {run['version']}{loss}")


def _print_devices(devices: list[dict[str, Any]], live: bool) -> None:
    if not devices:
        click.echo("no devices: taskedge cooperate enrol NAME makes one")
        return
    width = max(6, *(len(device["name"]) for device in devices))
    click.echo(f"{'device':{width}}  {'there':8}  {'key ends':10}  note")
    for device in devices:
        there = {None: "unknown", True: "yes", False: "no"}[device["present"] if live else None]
        click.echo(f"{device['name']:{width}}  {there:8}  {device['expires'][:10]:10}  {device['note']}".rstrip())
