"""``taskedge cooperate status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.cooperate.cooperate_options import fleet_folder, folder_option
from taskedge.cli.shared_options import json_option, print_json


@click.command(
    "status",
    short_help="Show devices, server and progress of the run.",
    epilog="\b\nExamples:\n  taskedge cooperate status\n  taskedge cooperate status --folder plant-7 --json\n",
)
@folder_option
@json_option
def command(folder: Path | None, as_json: bool) -> None:
    """Show the enrolled and the present devices, the server, and the progress of the run.

    --folder also accepts the folder of a run on one machine (OUT.run).
    """
    from taskedge.cooperation.fleet.fleet_status import fleet_status

    status = fleet_status(fleet_folder(folder))
    if as_json:
        print_json(status)
        return
    server = status["server"]
    click.echo(f"fleet {status['fleet']}, server {server['address']}: {'runs' if server['runs'] else 'does not run'}")
    _print_devices(status["devices"], status["coordinator_runs"])
    run = status["run"]
    if run is None:
        click.echo("no run yet: taskedge cooperate serve begins one")
        return
    loss = "" if run["loss"] is None else f", loss {run['loss']:.4f}"
    click.echo(f"run {run['state']}: round {run['round']} of {run['rounds']}, version {run['version']}{loss}")


def _print_devices(devices: list[dict[str, Any]], coordinator_runs: bool) -> None:
    if not devices:
        click.echo("no devices: taskedge cooperate enrol NAME makes one")
        return
    width = max(6, *(len(device["name"]) for device in devices))
    click.echo(f"{'device':{width}}  {'there':8}  {'key ends':10}  note")
    for device in devices:
        present = device["present"] if coordinator_runs else None
        there = {None: "unknown", True: "yes", False: "no"}[present]
        click.echo(f"{device['name']:{width}}  {there:8}  {device['expires'][:10]:10}  {device['note']}".rstrip())
