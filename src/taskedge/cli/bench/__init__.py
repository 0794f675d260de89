"""``taskedge bench``: one module for each of its verbs."""

from __future__ import annotations

import click

from taskedge.cli.bench import device

EPILOG = """\b
Examples:
  taskedge bench device
  taskedge bench device --model ./minilm --uplink 1Mbit/s --out jetson-1.json
"""


@click.group(commands={"device": device.command}, epilog=EPILOG)
def command() -> None:
    """Measure this machine, for comparison with other machines."""
