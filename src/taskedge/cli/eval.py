"""``taskedge eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskedge.cli.config_options import json_option, print_json
from taskedge.cli.delta_options import delta_options, figures, prepared, progress

EPILOG = """\b
Examples:
  taskedge eval task.safetensors --data heldout.csv
  taskedge eval task.safetensors --data heldout.csv --text review --label sentiment --model ./bert-base --json
  taskedge eval pets.safetensors --data heldout/
"""


@click.command(epilog=EPILOG)
@delta_options
@click.option("--label", help="Column with the label.  [default: as in training]")
@click.option("--response", help="Column with the response.  [default: as in training]")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], label: str | None, prompt: str | None, response: str | None,
    image: str | None, batch_size: int, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Measure a delta on data with answers, on a freshly loaded base.

    Classes: accuracy, macro F1 and loss. Numbers: mean squared error and correlations. Generation: perplexity, and how
    many responses are found to the letter.
    """
    columns = {"text": text, "label": label, "prompt": prompt, "response": response, "image": image}
    work = prepared(delta, data, columns, options, answers=True)
    with progress(len(work.rows), "measuring") as done:
        measured = work.evaluate(batch_size, done)
    if as_json:
        print_json(measured)
        return
    classes = f", {len(work.task.labels)} classes" if work.task.labels else ""
    click.echo(f"{data}: {figures(measured)} ({measured['rows']:,} rows{classes})")
