"""``taskedge predict``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import click

from taskedge.cli.options import json_option, note
from taskedge.cli.using import columns, delta_options, label_texts

EPILOG = """\b
Examples:
  taskedge predict task.safetensors --data new.csv --text review
  taskedge predict task.safetensors --data new.jsonl --out labelled.csv
  taskedge predict task.safetensors --data new.csv --json | head
"""


@click.command(epilog=EPILOG)
@delta_options
@click.option("--out", type=click.Path(path_type=Path), help="Write here and not to standard output.")
@click.option("--replace", is_flag=True, help="Replace --out where it exists.")
@json_option
def command(
    delta: Path, data: Path, text: tuple[str, ...], model: str | None, batch_size: int, out: Path | None,
    force: bool, replace: bool, as_json: bool,
) -> None:  # fmt: skip
    """Label new data with a delta: one line per row, with the label and its probability (CSV, or JSON lines)."""
    from taskedge.errors import InputError
    from taskedge.files import write_aside
    from taskedge.training.table import read_table

    if out is not None and out.exists() and not replace:
        raise InputError(f"{out} exists: name another file with --out, or replace it with --replace")
    texts, _ = columns(delta, text)
    table = read_table(data, texts)
    prediction, labels = label_texts(delta, table, model, batch_size, force=force)
    found = [
        (labels[place], round(float(chances[place]), 6))
        for place, chances in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    lines = io.StringIO()
    if as_json:
        for row, (label, probability) in enumerate(found, start=1):
            lines.write(json.dumps({"row": row, "label": label, "probability": probability}, ensure_ascii=False) + "\n")
    else:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["row", "label", "probability"])
        writer.writerows([row, label, probability] for row, (label, probability) in enumerate(found, start=1))
    if out is None:
        click.echo(lines.getvalue(), nl=False)
    else:
        write_aside(out, lines.getvalue().encode())
        note(f"{out}: {len(found):,} rows")
