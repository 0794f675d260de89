"""``taskedge eval``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from taskedge.cli.options import json_option, print_json
from taskedge.cli.using import columns, delta_options, label_texts

EPILOG = """\b
Examples:
  taskedge eval task.safetensors --data heldout.csv
  taskedge eval task.safetensors --data heldout.csv --text review --label sentiment --model ./bert-base --json
"""


@click.command(epilog=EPILOG)
@delta_options
@click.option("--label", help="Column with the label.  [default: as in training]")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], label: str | None, model: str | None, batch_size: int,
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure a delta on labelled data: accuracy, macro F1 and loss, on a freshly loaded base."""
    from taskedge.errors import InputError
    from taskedge.training.table import check_labels, read_table
    from taskedge.training.text import quality

    texts, label = columns(delta, text, label)
    if label is None:
        raise InputError(f"{delta}: the delta does not say which column it was trained on: give --label")
    table = read_table(data, texts, label)
    prediction, labels = label_texts(delta, table, model, batch_size, force=force, check=check_labels)
    assert table.labels is not None
    measured = quality(prediction, [labels.index(name) for name in table.labels])
    if as_json:
        print_json(asdict(measured))
        return
    click.echo(
        f"{data}: accuracy {measured.accuracy:.4f}, macro F1 {measured.macro_f1:.4f}, loss {measured.loss:.4f} "
        f"({measured.rows:,} rows, {len(labels)} classes)"
    )
