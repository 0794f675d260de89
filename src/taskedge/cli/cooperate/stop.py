"""``taskedge cooperate stop``."""

from __future__ import annotations

from pathlib import Path

import click

from taskedge.cli.cooperate.cooperate_options import fleet_folder, folder_option


@click.command(
    "stop",
    short_help="Stop the coordinator and the server.",
    epilog="""\b
Examples:
  taskedge cooperate stop
  taskedge cooperate stop --folder plant-7 --keep-server
  taskedge cooperate stop --folder task.safetensors.run
""",
)
@folder_option
@click.option("--keep-server", is_flag=True, help="Stop only the coordinator: devices stay connected.")
@click.option(
    "--seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for the coordinator to end.",
)
def command(folder: Path | None, keep_server: bool, seconds: float) -> None:
    """Stop the coordinator of a fleet and then its server, wherever on this machine they were started.

    Committed versions stay: the run is resumed with --resume. --folder also accepts the folder of a run on one machine
    (OUT.run).
    """
    from taskedge.cooperation.fleet.stop_fleet import stop_fleet

    path = fleet_folder(folder)
    stopped = stop_fleet(path, seconds, keep_server=keep_server)
    if stopped.coordinator is None:
        click.echo(f"{path}: no coordinator runs")
    else:
        advice = ": its run can be continued with --resume" if stopped.resumable else ""
        click.echo(f"{path}: the coordinator (process {stopped.coordinator}) has ended{advice}")
    if stopped.server is not None:
        click.echo(f"{path}: the server (process {stopped.server}) has ended; devices keep trying to come back")
    elif not keep_server and stopped.coordinator is None:
        click.echo(f"{path}: no server runs")
