"""The verbs of ``taskedge cooperate``."""

from __future__ import annotations

import click

from taskedge.cli.cooperate import enrollment, join, local, serve, status, stop

EPILOG = """\b
Examples:
  taskedge cooperate local --devices 4 --model ./minilm --train reviews.csv --text review --label sentiment
  taskedge cooperate init --name plant-7 --host 10.0.0.5 --listen 0.0.0.0
  taskedge cooperate enrol jetson-1
  taskedge cooperate serve --model ./minilm --class neg --class pos --devices 3
  taskedge cooperate join --bundle jetson-1 --model ./minilm --data local.csv
  taskedge cooperate status
  taskedge cooperate stop
"""


VERBS = (
    local.command,
    enrollment.init,
    enrollment.enrol,
    enrollment.revoke,
    enrollment.renew,
    serve.command,
    join.command,
    status.command,
    stop.command,
)


class InOrder(click.Group):
    """A group that lists its verbs in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs."""
        return list(self.commands)


@click.group(cls=InOrder, commands={str(verb.name): verb for verb in VERBS}, epilog=EPILOG)
def command() -> None:
    """Fine-tune one model on many devices, whose data stays where it is.

    local tries this on one machine and needs nothing else. For real devices, init creates a fleet, enrol creates the
    keys of a device, serve coordinates a run, and join runs on the devices.
    """
