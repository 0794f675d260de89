"""``taskedge cooperate stop``."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.cooperate.shared import fleet_folder, folder_option


@click.command(
    "stop",
    short_help="End the coordinator and the server.",
    epilog="""\b
Examples:
  taskedge cooperate stop
  taskedge cooperate stop --folder plant-7 --keep-server
  taskedge cooperate stop --folder task.safetensors.run
""",
)
@folder_option
@click.option("--keep-server", is_flag=True, help="End the coordinator alone: devices stay connected.")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="How long to wait for the coordinator to end.",
)
def command(folder: Path | None, keep_server: bool, seconds: float) -> None:
    """End the coordinator of a fleet and then its server, wherever they were started on this machine.

    What was committed stays: the run goes on with --resume. The folder of a local run can be named, too.
    """
    from taskedge.cooperation.fleet.stop_fleet import stop

    place = fleet_folder(folder)
    ended = stop(place, seconds, keep_server=keep_server)
    if ended.coordinator is None:
        click.echo(f"{place}: no coordinator runs")
    else:
        more = ": its run goes on with --resume" if ended.resumable else ""
        click.echo(f"{place}: the coordinator (process {ended.coordinator}) has ended{more}")
    if ended.server is not None:
        click.echo(f"{place}: the server (process {ended.server}) has ended; devices keep trying to come back")
    elif not keep_server and ended.coordinator is None:
        click.echo(f"{place}: no server runs")
